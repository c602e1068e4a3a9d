//! File descriptors over unix sockets of the kind `SOCK_SEQPACKET`: each message is whole, with its descriptors, or not
//! there at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// A connected pair of sockets that keep message boundaries, both closed on exec.
///
/// # Errors
/// The kernel's answer when it has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with its descriptors. An empty message cannot be told from the end of the connection, so send at
/// least one byte.
///
/// # Errors
/// `WouldBlock` on a full non-blocking socket, `BrokenPipe` when the other side is gone (no signal is raised), `EMSGSIZE`
/// when the message is too long for one packet, `EINVAL` when there are more than 253 descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = SendAncillaryMessage::ScmRights(fds);
    let mut space = vec![
        MaybeUninit::uninit();
        if fds.is_empty() { 0 } else { rustix::cmsg_space!(ScmRights(fds.len())) }
    ];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(message) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let parts = [IoSlice::new(bytes)];
    let sent = retry_on_intr(|| sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message into `buf` and at most `max_fds` descriptors, closed on exec. A length of 0 means that the other
/// side has closed.
///
/// # Errors
/// `WouldBlock` on an empty non-blocking socket; `InvalidData` when the message or its descriptors did not fit, in which
/// case the descriptors that did are closed again.
pub fn recv(socket: impl AsFd, buf: &mut [u8], max_fds: usize) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space =
        vec![MaybeUninit::uninit(); if max_fds == 0 { 0 } else { rustix::cmsg_space!(ScmRights(max_fds)) }];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buf)];
    let message = retry_on_intr(|| recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let fds = received(&mut control);
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || fds.len() > max_fds {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message or its descriptors exceed the space for them",
        ));
    }
    Ok((message.bytes, fds))
}

fn received(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    control
        .drain()
        .filter_map(|part| if let RecvAncillaryMessage::ScmRights(fds) = part { Some(fds) } else { None })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message_and_closed_on_exec() {
        let (left, right) = pair().unwrap();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        send(&left, b"here", &[writer.as_fd(), left.as_fd()]).unwrap();
        drop(writer);
        let mut buf = [0; 16];
        let (len, mut fds) = recv(&right, &mut buf, 2).unwrap();
        assert_eq!((&buf[..len], fds.len()), (&b"here"[..], 2));
        for fd in &fds {
            assert!(fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
        }
        File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_leaks_nothing() {
        let (left, right) = pair().unwrap();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut buf = [0; 4];
        let many: Vec<_> = (0..8).map(|_| writer.as_fd()).collect();
        send(&left, b"ok", &many).unwrap();
        assert_eq!(recv(&right, &mut buf, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        send(&left, b"too long for it", &[]).unwrap();
        assert_eq!(recv(&right, &mut buf, 0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(writer);
        assert_eq!(File::from(reader).read(&mut buf).unwrap(), 0, "every copy of the writing end is closed");
    }

    #[test]
    fn a_closed_peer_is_seen_on_both_sides() {
        let (left, right) = pair().unwrap();
        drop(left);
        assert_eq!(recv(&right, &mut [0; 4], 0).unwrap().0, 0);
        assert_eq!(send(&right, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
