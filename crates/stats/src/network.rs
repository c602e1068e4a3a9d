//! The network interfaces of a namespace, as `/proc/<pid>/net/dev` lists them.

use std::path::PathBuf;

use crate::error::StatsError;

/// What went through an interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name inside the namespace.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames received.
    pub rx_packets: u64,
    /// Frames that were received with an error.
    pub rx_errors: u64,
    /// Frames that were received and thrown away.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Frames whose sending failed.
    pub tx_errors: u64,
    /// Frames that were thrown away instead of being sent.
    pub tx_dropped: u64,
}

/// The interfaces of the network namespace that process `pid` is in.
///
/// # Errors
/// [`StatsError::Gone`] when the process has ended.
pub fn interfaces(pid: i32) -> Result<Vec<Interface>, StatsError> {
    let path = PathBuf::from(format!("/proc/{pid}/net/dev"));
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(listed(&text)),
        // An ended process that was not waited for has no namespace any more.
        Err(error) if matches!(error.raw_os_error(), Some(2 | 3 | 22)) => Err(StatsError::Gone { path }),
        Err(source) => Err(StatsError::Read { path, source }),
    }
}

/// Two lines of headings, then a line for each: name, eight figures received, eight sent.
fn listed(text: &str) -> Vec<Interface> {
    text.lines().skip(2).filter_map(interface).collect()
}

fn interface(line: &str) -> Option<Interface> {
    let (name, figures) = line.rsplit_once(':')?;
    let figures: Vec<u64> = figures.split_whitespace().map_while(|it| it.parse().ok()).collect();
    Some(Interface {
        name: name.trim().to_owned(),
        rx_bytes: *figures.first()?,
        rx_packets: *figures.get(1)?,
        rx_errors: *figures.get(2)?,
        rx_dropped: *figures.get(3)?,
        tx_bytes: *figures.get(8)?,
        tx_packets: *figures.get(9)?,
        tx_errors: *figures.get(10)?,
        tx_dropped: *figures.get(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1234567    1000    3    5    0     0          0         0   765432     900    4    6    0     0       0          0
";

    #[test]
    fn each_line_is_an_interface() {
        let found = listed(TEXT);
        assert_eq!(found.len(), 2);
        let eth0 = Interface {
            name: "eth0".into(),
            rx_bytes: 1_234_567,
            rx_packets: 1000,
            rx_errors: 3,
            rx_dropped: 5,
            tx_bytes: 765_432,
            tx_packets: 900,
            tx_errors: 4,
            tx_dropped: 6,
        };
        assert_eq!(found[1], eth0);
        assert!(listed("a\nb\nnonsense\n x: 1 2\n").is_empty());
    }

    #[test]
    fn this_process_has_a_loopback_and_an_ended_one_has_nothing() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(interfaces(own).unwrap().iter().any(|it| it.name == "lo"));
        assert!(matches!(interfaces(i32::MAX), Err(StatsError::Gone { .. })));
    }
}
