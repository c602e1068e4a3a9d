//! A pod's figures where the pod has no group of its own: those of its containers together.

use stats::{Memory, Usage};

use super::Figures;

/// The sum; nothing of nothing. Shares of time lost do not add up and are left out, and so is what is available, since a limit of
/// one container is none of the pod.
pub(super) fn of<'a>(parts: impl Iterator<Item = &'a Figures>) -> Option<Figures> {
    parts.cloned().reduce(|sum, part| Figures {
        at: sum.at.min(part.at),
        usage: Usage {
            cpu_nanoseconds: add(sum.usage.cpu_nanoseconds, part.usage.cpu_nanoseconds),
            memory: sum.usage.memory.zip(part.usage.memory).map(|(a, b)| memories(a, b)),
            tasks: add(sum.usage.tasks, part.usage.tasks),
            ..Usage::default()
        },
        nano_cores: add(sum.nano_cores, part.nano_cores),
    })
}

fn memories(a: Memory, b: Memory) -> Memory {
    Memory {
        usage: a.usage + b.usage,
        working_set: a.working_set + b.working_set,
        anonymous: add(a.anonymous, b.anonymous),
        available: None,
        faults: add(a.faults, b.faults),
        major_faults: add(a.major_faults, b.major_faults),
    }
}

/// What one of them does not count, the sum does not know.
fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.zip(b).map(|(a, b)| a.saturating_add(b))
}

#[cfg(test)]
mod tests {
    use types::Timestamp;

    use super::*;

    fn figures(at: i64, cpu: u64, memory: u64, nano_cores: Option<u64>) -> Figures {
        let memory =
            Memory { usage: memory, working_set: memory / 2, available: Some(1), ..Memory::default() };
        let usage =
            Usage { cpu_nanoseconds: Some(cpu), memory: Some(memory), tasks: Some(1), ..Usage::default() };
        Figures { at: Timestamp(at), usage, nano_cores }
    }

    #[test]
    fn parts_add_up_and_what_one_lacks_is_unknown() {
        let parts = [figures(5, 10, 100, Some(7)), figures(4, 20, 200, None)];
        let sum = of(parts.iter()).unwrap();
        assert_eq!((sum.at, sum.nano_cores), (Timestamp(4), None));
        assert_eq!((sum.usage.cpu_nanoseconds, sum.usage.tasks), (Some(30), Some(2)));
        let memory = sum.usage.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set, memory.available), (300, 150, None));
        assert_eq!(of(std::iter::empty()), None);
        assert_eq!(of(parts[..1].iter()).as_ref(), Some(&parts[0]), "one alone keeps all it has");
    }
}
