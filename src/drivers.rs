//! What the configuration means to each part of the daemon: asked at the start, and again at each reload.

use serde_json::json;

use crate::config::Config;
use crate::handlers::Handlers;
use crate::pod::Settings;

/// The image store's part.
#[must_use]
pub fn images(config: &Config) -> image::StoreConfig {
    image::StoreConfig {
        root: config.root.join("images"),
        registry_config_dir: Some(config.image.registry_config_dir.clone()),
        pinned: config.image.pause_image.iter().chain(&config.image.pinned).cloned().collect(),
        max_parallel_downloads: config.image.max_parallel_downloads,
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
        ..base
    }
}

/// The configuration as `crictl info` shows it, under the names that node tools look for.
#[must_use]
pub fn describe(config: &Config, handlers: &Handlers) -> serde_json::Value {
    let runtimes = handlers.all.values().map(|handler| {
        let body = json!({ "path": handler.command.path, "working": handler.broken.is_none(), "error": handler.broken });
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
