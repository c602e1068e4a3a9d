use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio_stream::StreamExt as _;

use super::*;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn socket(&self) -> PathBuf {
        self.state().join("crimson.sock")
    }

    fn open(&self) -> Result<Listener, ListenError> {
        Listener::open(&self.socket(), &self.state(), None)
    }

    /// After another daemon's end. What another test is just starting may have its lock a little longer than that is waited for.
    fn open_again(&self, socket: &Path) -> Listener {
        let begun = std::time::Instant::now();
        loop {
            match Listener::open(socket, &self.state(), None) {
                Err(ListenError::StateInUse { .. }) if begun.elapsed().as_secs() < 60 => {}
                opened => return opened.unwrap(),
            }
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn only_the_owner_can_reach_the_socket_and_it_accepts() {
    let place = Place::new();
    let listener = place.open().unwrap();
    assert_eq!(mode(&place.socket()), 0o600);
    assert_eq!(mode(&place.state()), 0o711);
    let client = StdUnixStream::connect(place.socket()).unwrap();
    let mut incoming = listener.into_incoming().unwrap();
    incoming.next().await.unwrap().unwrap();
    drop(client);
}

#[tokio::test]
async fn the_file_goes_with_the_server_and_the_lock_is_free_again() {
    let place = Place::new();
    let incoming = place.open().unwrap().into_incoming().unwrap();
    drop(incoming);
    assert!(!place.socket().try_exists().unwrap());
    place.open_again(&place.socket());
}

#[tokio::test]
async fn the_lock_can_be_kept_longer_than_the_socket() {
    let place = Place::new();
    let listener = place.open().unwrap();
    let lock = listener.state_lock();
    drop(listener.into_incoming().unwrap());
    assert!(matches!(place.open().unwrap_err(), ListenError::StateInUse { .. }));
    drop(lock);
    place.open_again(&place.socket());
}

#[test]
fn a_directory_of_others_keeps_its_mode_and_a_missing_one_is_made_private() {
    let place = Place::new();
    let shared = place.directory.path().join("run");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    drop(Listener::open(&shared.join("c.sock"), &place.state(), None).unwrap());
    assert_eq!(mode(&shared), 0o755);
    drop(place.open_again(&shared.join("new/c.sock")));
    assert_eq!(mode(&shared.join("new")), 0o700);
}

#[test]
fn a_state_directory_open_to_others_can_be_passed_only() {
    let place = Place::new();
    fs::create_dir(place.state()).unwrap();
    fs::set_permissions(place.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let _listener = place.open().unwrap();
    assert_eq!(mode(&place.state()), 0o711);
}

#[test]
fn the_socket_of_a_dead_server_is_replaced() {
    let place = Place::new();
    fs::create_dir(place.state()).unwrap();
    // Bound only: what another test is just starting may listen for us for another moment.
    tokio::net::UnixSocket::new_stream().unwrap().bind(place.socket()).unwrap();
    assert!(place.socket().try_exists().unwrap(), "its file is left");
    let _listener = place.open().unwrap();
    StdUnixStream::connect(place.socket()).unwrap();
}

#[test]
fn a_second_daemon_is_refused_by_the_lock_and_names_the_first() {
    let place = Place::new();
    let _first = place.open().unwrap();
    let error = place.open().unwrap_err();
    let expected = format!("is in use by another crimson daemon (pid {})", std::process::id());
    assert!(error.to_string().ends_with(&expected), "{error}");
    StdUnixStream::connect(place.socket()).unwrap();
}

/// A child that a killed daemon had forked and not yet executed holds its descriptors a moment longer.
#[test]
fn the_lingering_lock_of_a_dead_daemon_is_waited_for() {
    let place = Place::new();
    fs::create_dir(place.state()).unwrap();
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    let pid = dead.id();
    dead.wait().unwrap();
    let file = fs::File::create(place.state().join("crimson.lock")).unwrap();
    file.lock().unwrap();
    fs::write(place.state().join("crimson.lock"), format!("{pid}\n")).unwrap();
    std::thread::scope(|threads| {
        let opening = threads.spawn(|| place.open());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!opening.is_finished(), "it waits");
        drop(file);
        opening.join().unwrap().unwrap();
    });
}

#[test]
fn a_live_server_of_another_state_directory_keeps_its_socket() {
    let place = Place::new();
    let _first = place.open().unwrap();
    let other = place.directory.path().join("other");
    let error = Listener::open(&place.socket(), &other, None).unwrap_err();
    assert!(matches!(error, ListenError::SocketInUse(_)), "{error}");
    StdUnixStream::connect(place.socket()).unwrap();
}

#[test]
fn a_server_too_busy_to_accept_is_still_a_live_one() {
    let place = Place::new();
    fs::create_dir(place.state()).unwrap();
    let busy = unix_socket(SocketFlags::CLOEXEC).unwrap();
    rustix::net::bind(&busy, &SocketAddrUnix::new(place.socket()).unwrap()).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let _waiting = StdUnixStream::connect(place.socket()).unwrap();
    assert!(matches!(place.open().unwrap_err(), ListenError::SocketInUse(_)));
}

#[test]
fn a_file_that_is_not_a_socket_is_not_removed() {
    let place = Place::new();
    fs::create_dir(place.state()).unwrap();
    fs::write(place.socket(), "precious").unwrap();
    assert!(matches!(place.open().unwrap_err(), ListenError::NotASocket(_)));
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "precious");
}

#[test]
fn an_inherited_socket_is_used_and_left_in_place() {
    let place = Place::new();
    let path = place.directory.path().join("systemd.sock");
    let socket = StdUnixListener::bind(&path).unwrap();
    let listener = Listener::open(&place.socket(), &place.state(), Some(socket)).unwrap();
    assert!(!place.socket().try_exists().unwrap());
    StdUnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(path.try_exists().unwrap());
}

/// Set in the child that stands for an activated daemon.
const ACTIVATED: &str = "CRIMSON_TEST_ACTIVATED";

/// Runs itself again with a listening socket as descriptor 3, as systemd would; the shell only moves it there.
#[test]
fn a_socket_of_systemd_is_taken_over_and_its_variables_end_here() {
    if std::env::var_os(ACTIVATED).is_some() {
        let socket = inherited().unwrap().expect("a socket was handed over");
        let (mut client, _) = socket.accept().unwrap();
        let left = std::env::vars_os().any(|(name, _)| name == "LISTEN_FDS" || name == "LISTEN_PID");
        io::Write::write_all(&mut client, if left { b"leaked" } else { b"served" }).unwrap();
        return;
    }
    let place = Place::new();
    let path = place.directory.path().join("systemd.sock");
    let socket = StdUnixListener::bind(&path).unwrap();
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0 0</dev/null", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "listener::tests::a_socket_of_systemd_is_taken_over_and_its_variables_end_here"])
        .env(ACTIVATED, "1")
        .stdin(OwnedFd::from(socket))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut answer = String::new();
    let mut client = StdUnixStream::connect(&path).unwrap();
    io::Read::read_to_string(&mut client, &mut answer).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(answer, "served");
}

#[tokio::test]
async fn the_daemon_of_a_state_directory_can_be_found() {
    let place = Place::new();
    assert_eq!(daemon_on(&place.state()).unwrap(), None);
    let listener = place.open().unwrap();
    assert_eq!(listener.path(), Some(place.socket()));
    assert!(!listener.is_inherited());
    assert_eq!(daemon_on(&place.state()).unwrap(), Some(std::process::id()));
    let pid = std::process::id();
    assert!(state_of(pid).unwrap().is_some(), "this one's, or that of a test beside it");
    std::fs::write(place.state().join("crimson.lock"), "1\n").unwrap();
    assert_eq!(daemon_on(&place.state()).unwrap(), None, "another process, which has not got the file open");
    drop(listener);
}
