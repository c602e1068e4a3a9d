//! The RPCs that prepare a session: Exec, Attach and PortForward check what is asked and answer with a URL.

use cri_api::v1;
use streaming::backend::{Attach, Exec, Streams};
use tonic::Status;

use super::Parts;
use super::status::status;

/// The URL at which the command is run.
pub(super) async fn exec(parts: &Parts, request: v1::ExecRequest) -> Result<String, Status> {
    let v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    if cmd.first().is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("cmd must not be empty"));
    }
    let streams = streams(Streams { stdin, stdout, stderr, tty })?;
    let running = parts.pods.session_in(&container_id, "run a command in").await;
    let container = running.map_err(|error| status(&*error))?;
    let url = parts.streaming.exec_url(Exec { container, command: cmd, streams });
    url.map_err(|error| status(&error))
}

/// The URL at which a client is attached. Its own word counts for the terminal: it opens its streams accordingly.
pub(super) async fn attach(parts: &Parts, request: v1::AttachRequest) -> Result<String, Status> {
    let v1::AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let streams = streams(Streams { stdin, stdout, stderr, tty })?;
    let running = parts.pods.session_in(&container_id, "attach to").await;
    let container = running.map_err(|error| status(&*error))?;
    parts.streaming.attach_url(Attach { container, streams }).map_err(|error| status(&error))
}

/// The URL at which connections are forwarded.
pub(super) fn port_forward(parts: &Parts, request: v1::PortForwardRequest) -> Result<String, Status> {
    let ports = ports(&request.port)?;
    let sandbox = parts.pods.session_to(&request.pod_sandbox_id).map_err(|error| status(&*error))?;
    parts.streaming.port_forward_url(sandbox, ports).map_err(|error| status(&error))
}

fn streams(streams: Streams) -> Result<Streams, Status> {
    let Streams { stdin, stdout, stderr, tty } = streams;
    if tty && stderr {
        return Err(Status::invalid_argument("tty and stderr exclude each other: a terminal has one output"));
    }
    if !(stdin || stdout || stderr) {
        return Err(Status::invalid_argument("one of stdin, stdout and stderr must be set"));
    }
    Ok(streams)
}

fn ports(ports: &[i32]) -> Result<Vec<u16>, Status> {
    let port = |port: &i32| match u16::try_from(*port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Status::invalid_argument(format!("port {port} is outside the range 1 to 65535"))),
    };
    ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn streams_that_make_no_session_are_refused() {
        let all = Streams { stdin: true, stdout: true, stderr: true, tty: false };
        let refused =
            |streams| super::streams(streams).map_err(|status| status.code()) == Err(Code::InvalidArgument);
        assert!(!refused(all));
        assert!(refused(Streams { tty: true, ..all }));
        assert!(!refused(Streams { tty: true, stderr: false, ..all }));
        assert!(refused(Streams { stdin: false, stdout: false, stderr: false, tty: true }));
        assert!(!refused(Streams { stdin: false, stdout: false, ..all }));
    }

    #[test]
    fn ports_are_those_of_tcp() {
        assert_eq!(super::ports(&[1, 80, 65_535]).unwrap(), [1, 80, 65_535]);
        assert_eq!(super::ports(&[]).unwrap(), [0; 0]);
        for bad in [0, -1, 65_536] {
            assert_eq!(super::ports(&[80, bad]).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
