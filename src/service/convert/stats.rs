//! Figures on the wire. What is not known is left out: a reader takes 0 for a measurement.

use cri_api::v1;
use stats::{Average, Interface, Pressure, Usage};
use types::Timestamp;

use super::selects;
use crate::meter::{ContainerFigures, Figures, LayerSize, PodFigures};
use crate::pod::view::{ContainerState, ContainerView, SandboxView};

/// The interface that carries a pod's traffic.
const DEFAULT_INTERFACE: &str = "eth0";
const LOOPBACK: &str = "lo";

/// Whether a container is in the list: it runs, and the filter lets it through; ids may be prefixes.
#[must_use]
pub fn container_passes(view: &ContainerView, filter: Option<&v1::ContainerStatsFilter>) -> bool {
    view.state == ContainerState::Running
        && filter.is_none_or(|filter| {
            view.id.as_str().starts_with(&filter.id)
                && view.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
                && selects(&filter.label_selector, view.request.labels())
        })
}

/// Whether the filter lets a sandbox through; the id may be a prefix.
#[must_use]
pub fn sandbox_passes(view: &SandboxView, filter: Option<&v1::PodSandboxStatsFilter>) -> bool {
    filter.is_none_or(|filter| {
        view.id.as_str().starts_with(&filter.id) && selects(&filter.label_selector, view.request.labels())
    })
}

/// ContainerStats; `layers` is where writable layers lie.
#[must_use]
pub fn container(found: &ContainerFigures, layers: &str) -> v1::ContainerStats {
    let view = &found.container;
    let figures = found.figures.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: view.id.to_string(),
            metadata: view.request.config().metadata.clone(),
            labels: view.request.labels().clone(),
            annotations: view.request.annotations().clone(),
        }),
        cpu: figures.and_then(cpu),
        memory: figures.and_then(memory),
        writable_layer: found.layer.map(|size| layer(size, layers)),
        swap: figures.and_then(swap),
        io: figures.and_then(io),
    }
}

/// PodSandboxStats.
#[must_use]
pub fn sandbox(found: &PodFigures, layers: &str) -> v1::PodSandboxStats {
    let view = &found.sandbox;
    let figures = found.figures.as_ref();
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: view.id.to_string(),
            metadata: view.request.config().metadata.clone(),
            labels: view.request.labels().clone(),
            annotations: view.request.annotations().clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: figures.and_then(cpu),
            memory: figures.and_then(memory),
            network: found.network.as_ref().map(|(at, interfaces)| network(*at, interfaces)),
            process: figures.and_then(|figures| {
                let process_count = value(figures.usage.tasks);
                process_count.is_some().then_some(v1::ProcessUsage { timestamp: figures.at.0, process_count })
            }),
            containers: found.containers.iter().map(|found| container(found, layers)).collect(),
            io: figures.and_then(io),
        }),
        windows: None,
    }
}

fn value(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

fn cpu(figures: &Figures) -> Option<v1::CpuUsage> {
    let Usage { cpu_nanoseconds, cpu_pressure, .. } = figures.usage;
    cpu_nanoseconds?;
    Some(v1::CpuUsage {
        timestamp: figures.at.0,
        usage_core_nano_seconds: value(cpu_nanoseconds),
        usage_nano_cores: value(figures.nano_cores),
        psi: cpu_pressure.map(pressure),
    })
}

fn memory(figures: &Figures) -> Option<v1::MemoryUsage> {
    let memory = figures.usage.memory?;
    Some(v1::MemoryUsage {
        timestamp: figures.at.0,
        working_set_bytes: value(Some(memory.working_set)),
        available_bytes: value(memory.available),
        usage_bytes: value(Some(memory.usage)),
        rss_bytes: value(memory.anonymous),
        page_faults: value(memory.faults),
        major_page_faults: value(memory.major_faults),
        psi: figures.usage.memory_pressure.map(pressure),
    })
}

fn swap(figures: &Figures) -> Option<v1::SwapUsage> {
    let swap = figures.usage.swap?;
    Some(v1::SwapUsage {
        timestamp: figures.at.0,
        swap_available_bytes: value(swap.available),
        swap_usage_bytes: value(Some(swap.usage)),
    })
}

fn io(figures: &Figures) -> Option<v1::IoUsage> {
    let stalled = figures.usage.io_pressure?;
    Some(v1::IoUsage { timestamp: figures.at.0, psi: Some(pressure(stalled)) })
}

fn pressure(pressure: Pressure) -> v1::PsiStats {
    let data = |average: Average| v1::PsiData {
        total: average.total,
        avg10: average.last_10,
        avg60: average.last_60,
        avg300: average.last_300,
    };
    v1::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

fn layer(size: LayerSize, layers: &str) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: size.at.0,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: layers.to_owned() }),
        used_bytes: value(Some(size.usage.bytes)),
        inodes_used: value(Some(size.usage.inodes)),
    }
}

fn network(at: Timestamp, interfaces: &[Interface]) -> v1::NetworkUsage {
    let one = |it: &Interface| v1::NetworkInterfaceUsage {
        name: it.name.clone(),
        rx_bytes: value(Some(it.rx_bytes)),
        rx_errors: value(Some(it.rx_errors)),
        tx_bytes: value(Some(it.tx_bytes)),
        tx_errors: value(Some(it.tx_errors)),
    };
    let others = interfaces.iter().filter(|it| it.name != LOOPBACK && it.name != DEFAULT_INTERFACE);
    v1::NetworkUsage {
        timestamp: at.0,
        default_interface: interfaces.iter().find(|it| it.name == DEFAULT_INTERFACE).map(one),
        interfaces: others.map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use stats::Memory;

    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let unknown = Figures { at: Timestamp(1), usage: Usage::default(), nano_cores: None };
        assert_eq!((cpu(&unknown), memory(&unknown), swap(&unknown), io(&unknown)), (None, None, None, None));
        let memory_alone = Memory { usage: 10, working_set: 7, ..Memory::default() };
        let usage = Usage { memory: Some(memory_alone), cpu_nanoseconds: Some(3), ..Usage::default() };
        let known = Figures { usage, ..unknown };
        let told = memory(&known).unwrap();
        assert_eq!((told.usage_bytes, told.working_set_bytes), (value(Some(10)), value(Some(7))));
        assert_eq!((told.available_bytes, told.rss_bytes), (None, None));
        let told = cpu(&known).unwrap();
        assert_eq!((told.usage_core_nano_seconds, told.usage_nano_cores), (value(Some(3)), None));
    }

    #[test]
    fn the_pods_interface_is_told_apart_from_others_and_the_loopback() {
        let interface = |name: &str| Interface { name: name.to_owned(), rx_bytes: 1, ..Interface::default() };
        let told = network(Timestamp(1), &["lo", "net1", "eth0"].map(interface));
        assert_eq!(told.default_interface.unwrap().name, "eth0");
        let others: Vec<String> = told.interfaces.into_iter().map(|it| it.name).collect();
        assert_eq!(others, ["net1"]);
    }
}
