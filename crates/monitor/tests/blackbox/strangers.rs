//! Clients that are old, new, broken or hostile, spoken to without the daemon's client.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use monitor_api::codec::{self, MESSAGE_LIMIT};
use monitor_api::{Monitors, RefusalKind, Reply, Request};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::pod::{LIMIT, Pod, wait_until};

/// A connection that sends whatever it likes.
struct Client(OwnedFd);

impl Client {
    fn connect(pod: &Pod) -> Self {
        let dir = std::fs::File::open(pod.path("state/pods").join(pod.sandbox.as_str())).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let address = format!("/proc/self/fd/{}/monitor.sock", dir.as_raw_fd());
        rustix::net::connect(&socket, &SocketAddrUnix::new(address).unwrap()).unwrap();
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(LIMIT))
            .unwrap();
        Self(socket)
    }

    fn say(&self, text: &str) {
        sys::fdpass::send(&self.0, text.as_bytes(), &[]).unwrap();
    }

    /// The next message; nothing when the connection was closed.
    fn hear(&self) -> Option<String> {
        let mut buffer = vec![0; MESSAGE_LIMIT];
        match sys::fdpass::recv(&self.0, &mut buffer, 3) {
            Ok((0, _)) => None,
            Ok((len, _)) => Some(String::from_utf8(buffer[..len].to_vec()).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn ask(&self, text: &str) -> Reply {
        self.say(text);
        codec::decode(self.hear().unwrap().as_bytes()).unwrap().body
    }
}

fn refusal(reply: Reply) -> RefusalKind {
    match reply {
        Reply::Refused(refusal) => refusal.kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn daemons_of_other_versions_are_answered_by_what_both_understand() {
    let pod = Pod::new().await;
    let client = Client::connect(&pod);
    let version = |reply| match reply {
        Reply::Hello { version, .. } => version,
        other => panic!("{other:?}"),
    };
    assert_eq!(version(client.ask(r#"{"seq":1,"body":{"Hello":{"version":1}}}"#)), 1);
    let newer = r#"{"seq":2,"body":{"Hello":{"version":9,"oldest":1,"abilities":["flight"]}}}"#;
    assert_eq!(version(client.ask(newer)), 1);
    let too_new = r#"{"seq":3,"body":{"Hello":{"version":9,"oldest":8}}}"#;
    assert_eq!(refusal(client.ask(too_new)), RefusalKind::Unsupported);
    let unknown = r#"{"seq":4,"body":{"Teleport":{"to":["moon",{"far":true}]}}}"#;
    assert_eq!(refusal(client.ask(unknown)), RefusalKind::Unsupported);
    assert!(matches!(client.ask(r#"{"seq":5,"body":"List"}"#), Reply::List(_)), "and it goes on");
    pod.finish().await;
}

#[tokio::test]
async fn nonsense_ends_the_connection_it_came_on_and_no_other() {
    let pod = Pod::new().await;
    for nonsense in ["", "\u{0}\u{1}\u{2}", "{}", r#"{"seq":-1,"body":"List"}"#, "[[[[[[[["] {
        let client = Client::connect(&pod);
        client.say(nonsense);
        assert_eq!(client.hear(), None, "{nonsense:?}");
    }
    let client = Client::connect(&pod);
    let descriptors = [client.0.as_fd(); 3];
    sys::fdpass::send(&client.0, br#"{"seq":1,"body":"List"}"#, &descriptors).unwrap();
    assert!(client.hear().is_some());
    let open = || std::fs::read_dir(format!("/proc/{}/fd", pod.connection.pid)).unwrap().count();
    let before = open();
    drop(client);
    wait_until("descriptors nobody asked for are closed", || open() < before).await;
    pod.connection.monitor.list().await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_client_that_asks_and_never_listens_holds_nobody_up() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("seq 1 100000; exit 4");
    let client = Client::connect(&pod);
    rustix::io::ioctl_fionbio(&client.0, true).unwrap();
    let list = codec::encode(1, &Request::List).unwrap();
    // Until it is cut off: its own queue towards the monitor is full now and then, which is no end.
    let flooding = async {
        loop {
            match sys::fdpass::send(&client.0, &list, &[]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::task::yield_now().await
                }
                Err(_) => break,
                Ok(()) => {}
            }
        }
    };
    let working = async {
        pod.run(&plan).await;
        assert_eq!(pod.exit().await.exit_code, 4);
    };
    let both = async { tokio::join!(flooding, working) };
    tokio::time::timeout(crate::pod::LIMIT, both).await.unwrap();
    assert!(Pod::printed(&plan, crilog::Stream::Stdout).ends_with("100000\n"));
    pod.finish().await;
}

#[tokio::test]
async fn a_monitor_without_descriptors_goes_on_and_lets_daemons_in_again() {
    let mut pod = Pod::new().await;
    let plan = pod.plan("trap 'echo heard' USR1; echo ready; while :; do sleep 0.05; done");
    let id = pod.run(&plan).await;
    Pod::wait_printed(&plan, "ready").await;
    let pid = rustix::process::Pid::from_raw(pod.connection.pid).unwrap();
    // The monitor has inherited ours.
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = |current| {
        let limit = rustix::process::Rlimit { current: Some(current), maximum };
        let old = rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit).unwrap();
        old.current.unwrap()
    };
    let old = limit(3);
    let waiting = Client::connect(&pod);
    waiting.say(r#"{"seq":1,"body":"List"}"#);
    pod.connection.monitor.signal(&id, 10, false).await.unwrap();
    Pod::wait_printed(&plan, "heard").await;
    let request = pod.process(&id, "exit 0");
    let refused = pod.connection.monitor.exec(request, Vec::new()).await.unwrap_err();
    assert!(refused.refusal().is_some(), "{refused}");
    let busy = cpu_ticks(pod.connection.pid);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(cpu_ticks(pod.connection.pid) - busy < 20, "it waits rather than trying all the time");
    limit(old);
    assert!(waiting.hear().unwrap().contains("List"));
    pod.monitors.connect(&pod.sandbox).await.unwrap().unwrap();
    pod.finish().await;
}

/// Processor time that a process has taken, in hundredths of a second.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
