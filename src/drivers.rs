//! What the configuration means to each part of the daemon: asked at the start, and again at each reload.

use serde_json::json;
use spec::NodeFacts;

use crate::config::{self, Config};
use crate::handlers::Handlers;
use crate::pod::{ImageVolumes, Settings};
use crate::ulimits;

/// The image store's part.
#[must_use]
pub fn images(config: &Config) -> image::StoreConfig {
    image::StoreConfig {
        root: config.root.join("images"),
        registry_config_dir: Some(config.image.registry_config_dir.clone()),
        pinned: config.image.pause_image.iter().chain(&config.image.pinned).cloned().collect(),
        max_parallel_downloads: config.image.max_parallel_downloads,
        progress_timeout: config.image.progress_timeout,
        auth_files: config.image.auth_files.clone(),
    }
}

/// The network driver's part.
#[must_use]
pub fn network(config: &Config) -> cni::CniConfig {
    cni::CniConfig {
        conf_dir: config.cni.conf_dir.clone(),
        bin_dirs: config.cni.bin_dirs.clone(),
        cache_dir: config.root.join("cni"),
        operation_timeout: config.cni.timeout,
        ..cni::CniConfig::default()
    }
}

/// The pods' part; what is none of the configuration's stays as it is in `base`.
#[must_use]
pub fn settings(config: &Config, handlers: Handlers, base: Settings) -> Settings {
    Settings {
        handlers: handlers.all,
        default_handler: handlers.default,
        pause_image: config.image.pause_image.clone(),
        runtime_timeout: config.limits.create_timeout,
        exec_output_bytes: config.limits.exec_sync_output_bytes,
        image_volumes: match config.image.volumes {
            config::ImageVolumes::Bind => ImageVolumes::Bind,
            config::ImageVolumes::Mkdir => ImageVolumes::Mkdir,
            config::ImageVolumes::Ignore => ImageVolumes::Ignore,
        },
        mount_source_timeout: config.limits.mount_source_timeout,
        cdi_spec_dirs: config.security.cdi_spec_dirs.clone(),
        device_ownership: config.security.device_ownership,
        selinux_categories: config.security.selinux_categories,
        facts: NodeFacts {
            unset_seccomp_profile: config.security.unset_seccomp_profile.clone(),
            rlimits: ulimits::that_can_be_set(&config.runtime.default_ulimits, &base.facts),
            ..base.facts.clone()
        },
        ..base
    }
}

/// The configuration as `crictl info` shows it, under the names that node tools look for.
#[must_use]
pub fn describe(config: &Config, handlers: &Handlers) -> serde_json::Value {
    let runtimes = handlers.all.values().map(|handler| {
        let advisories = runtime::Advisory::of(&handler.version);
        let body = json!({
            "path": handler.command.path,
            "working": handler.broken.is_none(),
            "error": handler.broken,
            "version": handler.version,
            "features": handler.features,
            "knownVulnerabilities": advisories.iter().map(|advisory| advisory.id).collect::<Vec<_>>(),
            "cniConfDir": handler.rules.cni_conf_dir,
            "podAnnotations": handler.rules.pod_annotations,
            "containerAnnotations": handler.rules.container_annotations,
            "privilegedWithoutHostDevices": !handler.rules.privileged_devices,
        });
        (handler.name.clone(), body)
    });
    let runtimes: serde_json::Map<_, _> = runtimes.collect();
    json!({
        "sandboxImage": config.image.pause_image.clone().unwrap_or_default(),
        "rootDir": config.root,
        "stateDir": config.state,
        "cni": {
            "confDir": config.cni.conf_dir,
            "binDirs": config.cni.bin_dirs,
            "binDir": config.cni.bin_dirs.first(),
        },
        "containerd": {
            "snapshotter": "overlay",
            "defaultRuntimeName": handlers.default,
            "runtimes": runtimes,
        },
        "registry": { "configPath": config.image.registry_config_dir },
    })
}
