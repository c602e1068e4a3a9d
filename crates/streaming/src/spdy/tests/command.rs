use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

use super::super::frame::put_ping;
use super::super::fuzzing::Told;
use super::super::streams::OUT_BOUND;
use super::super::{Limits, SpdyError, Version, command, remote_command};
use super::LIMITS;
use super::client::{Client, NETWORK, client};
use crate::backend::Streams;
use crate::channels::{Channels, StatusForm};

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

/// A session of which every stream is open: 1 error, 3 stdin, 5 stdout, 7 stderr.
async fn session() -> (Client, Channels) {
    let (mut client, io) = client();
    let (channels, ()) = tokio::join!(remote_command(io, Version::V4, ALL, LIMITS), async {
        for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            client.channel(stream, kind).await;
        }
    });
    (client, channels.unwrap())
}

async fn fails(io: DuplexStream, expected: Streams, limits: Limits) -> SpdyError {
    remote_command(io, Version::V4, expected, limits).await.err().unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_stream_is_answered_and_carries_its_channel() {
    let (mut client, mut channels) = session().await;
    assert_eq!(channels.status, StatusForm::Json);
    assert!(channels.resize.is_none());
    let (mut stdin, mut stdout) = (channels.stdin.take().unwrap(), channels.stdout.take().unwrap());
    let mut stderr = channels.stderr.take().unwrap();

    client.data(3, b"in", false).await;
    client.data(3, b"put", true).await;
    let mut input = String::new();
    stdin.read_to_string(&mut input).await.unwrap();
    assert_eq!(input, "input");
    assert!(!channels.gone.is_cancelled(), "a half-closed stdin is no end");

    // Replies carry no headers, so that the decoder tells nothing of them.
    stdout.write_all(b"out").await.unwrap();
    stdout.shutdown().await.unwrap();
    client.hears_end_of(5, b"out").await;
    stderr.write_all(b"err").await.unwrap();
    drop(stderr);
    client.hears_end_of(7, b"err").await;
    channels.error.write_all(b"done").await.unwrap();
    drop((channels, stdin, stdout));
    client.hears_end_of(1, b"done").await;
    assert_eq!(client.next().await, Some(Told::Data { stream: 3, bytes: Vec::new(), last: true }));
    client.hears("GoAway").await;
    assert_eq!(client.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn all_that_was_written_is_sent_after_everything_was_dropped() {
    let (mut client, mut channels) = session().await;
    let written = vec![7; OUT_BOUND];
    channels.stdout.as_mut().unwrap().write_all(&written).await.unwrap();
    channels.error.write_all(b"0").await.unwrap();
    drop(channels);
    // Somebody reads on after ten minutes.
    sleep(Duration::from_secs(600)).await;
    let mut data = 0;
    loop {
        match client.next().await.unwrap() {
            Told::Data { stream: 5, bytes, .. } => data += bytes.len(),
            Told::Data { stream: 1, bytes, last: true } if bytes.is_empty() => break,
            _ => {}
        }
    }
    assert_eq!(data, written.len());
}

#[tokio::test(start_paused = true)]
async fn small_writes_share_frames() {
    let (mut client, mut channels) = session().await;
    let (mut stdout, mut stderr) = (channels.stdout.take().unwrap(), channels.stderr.take().unwrap());
    // The task does not run meanwhile.
    for _ in 0..100 {
        stdout.write_all(b"ab").await.unwrap();
    }
    stderr.write_all(b"c").await.unwrap();
    stdout.write_all(b"d").await.unwrap();
    stdout.write_all(b"e").await.unwrap();
    drop(stdout);
    let data = |stream, bytes: &[u8], last| Some(Told::Data { stream, bytes: bytes.to_vec(), last });
    assert_eq!(client.next().await, data(5, &b"ab".repeat(100), false));
    assert_eq!(client.next().await, data(7, b"c", false));
    assert_eq!(client.next().await, data(5, b"de", false));
    assert_eq!(client.next().await, data(5, b"", true));
    assert!(!channels.gone.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn input_that_nobody_wants_any_more_is_reset() {
    let (mut client, mut channels) = session().await;
    channels.stdin = None;
    assert_eq!(client.next().await, Some(Told::Data { stream: 3, bytes: Vec::new(), last: true }));
    client.hears("Reset { stream: 3 }").await;
    client.data(3, &vec![0; 1024 * 1024], false).await;
    assert!(!channels.gone.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn sizes_come_only_in_new_versions_with_a_terminal() {
    for (version, resizes) in
        [(Version::V4, true), (Version::V3, true), (Version::V2, false), (Version::V1, false)]
    {
        let (mut client, io) = client();
        let (channels, ()) = tokio::join!(remote_command(io, version, TERMINAL, LIMITS), async {
            for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
                client.channel(stream, kind).await;
            }
            if resizes {
                client.channel(7, "resize").await;
                client.data(7, b"{}", true).await;
            }
        });
        let channels = channels.unwrap();
        assert_eq!(channels.status == StatusForm::Json, version == Version::V4);
        assert_eq!(channels.resize.is_some(), resizes, "{version:?}");
        if let Some(mut resize) = channels.resize {
            let mut size = String::new();
            resize.read_to_string(&mut size).await.unwrap();
            assert_eq!(size, "{}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_nobody_asked_for_are_taken_and_twins_are_not() {
    let (mut client, io) = client();
    let expected = Streams { stdin: false, stdout: true, stderr: false, tty: false };
    let session = tokio::spawn(remote_command(io, Version::V4, expected, LIMITS));
    client.channel(1, "resize").await;
    client.hears("Last { stream: 1 }").await;
    client.data(1, b"nobody", false).await;
    client.channel(3, "error").await;
    client.channel(5, "error").await;
    client.hears("Reset { stream: 5 }").await;
    client.channel(7, "stdout").await;
    let channels = session.await.unwrap().unwrap();
    client.channel(9, "stdin").await;
    client.hears("Reset { stream: 9 }").await;
    assert!(!channels.gone.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn streams_that_do_not_come_are_not_waited_for_longer_than_allowed() {
    let (mut client, io) = client();
    let begun = Instant::now();
    let (error, ()) = tokio::join!(fails(io, ALL, LIMITS), client.channel(1, "error"));
    assert_eq!(error, SpdyError::Timeout(LIMITS.creation));
    assert_eq!(begun.elapsed().as_secs(), LIMITS.creation.as_secs());
    client.hears_end_of(1, b"").await;
    client.hears("GoAway").await;
    assert_eq!(client.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_noticed_before_and_after() {
    let (mut client, io) = client();
    let (error, ()) = tokio::join!(fails(io, ALL, LIMITS), async {
        client.channel(1, "error").await;
        drop(client);
    });
    assert_eq!(error, SpdyError::Lost);

    let (mut client, mut channels) = session().await;
    client.data(3, b"last words", false).await;
    drop(client);
    channels.gone.cancelled().await;
    let mut input = Vec::new();
    let error = channels.stdin.as_mut().unwrap().read_to_end(&mut input).await.unwrap_err();
    assert_eq!((error.kind(), &input[..]), (ErrorKind::ConnectionAborted, &b"last words"[..]));
    let error = channels.stdout.as_mut().unwrap().write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_wants_no_status_has_left() {
    let (mut client, mut channels) = session().await;
    client.reset(5).await;
    let written = channels.stdout.as_mut().unwrap();
    while written.write_all(b"x").await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!channels.gone.is_cancelled(), "one of the outputs is not all");
    client.reset(1).await;
    channels.gone.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_client_does_not_read_makes_its_writer_wait_within_bounds() {
    let (mut client, mut channels) = session().await;
    let (mut stdout, mut stderr) = (channels.stdout.take().unwrap(), channels.stderr.take().unwrap());
    let mut written = 0;
    let chunk = vec![0; 64 * 1024];
    while let Ok(count) = timeout(Duration::from_secs(1), stdout.write(&chunk)).await {
        written += count.unwrap();
    }
    assert!(written <= 2 * (OUT_BOUND + chunk.len()) + NETWORK, "{written}");
    assert!(timeout(Duration::from_secs(1), stderr.write(&chunk)).await.is_err());
    // Both go on once it reads.
    let writers = tokio::spawn(async move {
        stderr.write_all(&[1; 1000]).await.unwrap();
        stdout.write_all(&vec![0; 1_000_000]).await.unwrap();
        drop((stdout, stderr));
        channels
    });
    let (mut out, mut err, mut ended) = (0, 0, 0);
    while ended < 2 {
        match client.next().await.unwrap() {
            Told::Data { stream, bytes, last } => {
                *(if stream == 5 { &mut out } else { &mut err }) += bytes.len();
                ended += usize::from(last);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((out, err), (written + 1_000_000, 1000));
    assert!(!writers.await.unwrap().gone.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn input_that_is_not_read_is_bounded_and_its_client_watched() {
    let (mut client, mut channels) = session().await;
    let mut frame = vec![0, 0, 0, 3, 0, 0xff, 0xff, 0xff];
    frame.resize(8 + 0xff_ffff, 5);
    let taken = client.flood(&frame, frame.len()).await;
    assert!(taken < command::BOUNDS.stream + 2 * NETWORK + 64 * 1024, "{taken}");
    assert!(taken > command::BOUNDS.stream, "{taken}");
    client.hears("Ping(2)").await;
    client.hears("Ping(4)").await;
    drop(client);
    channels.gone.cancelled().await;
    let mut input = Vec::new();
    channels.stdin.as_mut().unwrap().read_to_end(&mut input).await.unwrap_err();
    assert!(input.len() > command::BOUNDS.stream && input.iter().all(|byte| *byte == 5));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_all_of_its_input() {
    let (mut client, mut channels) = session().await;
    let sender = tokio::spawn(async move {
        for piece in 0..40u8 {
            client.data(3, &vec![piece; 50_000], piece == 39).await;
        }
        client
    });
    let mut stdin = channels.stdin.take().unwrap();
    let (mut buffer, mut read) = (vec![0; 3000], 0usize);
    loop {
        sleep(Duration::from_millis(1)).await;
        let count = stdin.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            assert_eq!(usize::from(*byte), read / 50_000);
            read += 1;
        }
    }
    assert_eq!(read, 40 * 50_000);
    drop(sender.await);
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_but_keep_nobody_busy() {
    let (mut client, channels) = session().await;
    client.ping(1).await;
    client.hears("Ping(1)").await;
    client.ping(2).await;
    let begun = Instant::now();
    // Others come before the limit, and change nothing.
    for id in [3, 5, 7] {
        sleep(LIMITS.idle / 4).await;
        client.ping(id).await;
        client.hears(&format!("Ping({id})")).await;
    }
    channels.gone.cancelled().await;
    assert_eq!(begun.elapsed().as_secs(), LIMITS.idle.as_secs());
    client.hears("GoAway").await;
    assert_eq!(client.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn bytes_in_either_direction_keep_a_session_alive() {
    let (mut client, mut channels) = session().await;
    for round in 0..6 {
        sleep(LIMITS.idle * 2 / 3).await;
        if round % 2 == 0 {
            client.data(3, b"x", false).await;
            channels.stdin.as_mut().unwrap().read_u8().await.unwrap();
        } else {
            channels.stdout.as_mut().unwrap().write_all(b"y").await.unwrap();
            assert_eq!(
                client.next().await,
                Some(Told::Data { stream: 5, bytes: b"y".to_vec(), last: false })
            );
        }
    }
    assert!(!channels.gone.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_not_read_are_bounded() {
    let (mut client, channels) = session().await;
    let mut pings = Vec::new();
    for _ in 0..1000 {
        put_ping(1, &mut pings);
    }
    let taken = client.flood(&pings, 64 * 1024 * 1024).await;
    assert!(taken < 8 * NETWORK, "{taken}");
    assert!(!channels.gone.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_connection_with_a_reason() {
    let nonsense: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x80, 4, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
        &[0, 0, 0, 99, 0, 0, 0, 1, 0],
        &[0, 0, 0, 2, 0, 0, 0, 1, 0],
        &[0x80, 3, 0, 1, 0, 0, 0, 20, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
    ];
    for bytes in nonsense {
        let (mut client, channels) = session().await;
        client.raw(bytes).await;
        channels.gone.cancelled().await;
        client.hears("GoAway").await;
        assert_eq!(client.next().await, None, "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_are_numbered_upwards_with_odd_numbers() {
    for wrong in [7, 5, 8, 0] {
        let (mut client, channels) = session().await;
        client.channel(wrong, "stdin").await;
        channels.gone.cancelled().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_before_the_client_has_spoken() {
    let (mut client, io) = client();
    let session = tokio::spawn(remote_command(io, Version::V4, ALL, LIMITS));
    assert!(timeout(LIMITS.creation / 2, client.next()).await.is_err());
    session.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_knows_windows_is_told_of_them_and_obeyed() {
    let (mut client, mut channels) = session().await;
    let (mut stdin, mut stdout) = (channels.stdin.take().unwrap(), channels.stdout.take().unwrap());
    client.data(3, &[1; 10], false).await;
    stdin.read_exact(&mut [0; 10]).await.unwrap();
    client.settings(&[(7, 1000)]).await;
    let wider = u32::try_from(command::BOUNDS.connection).unwrap() - 64 * 1024 + 10;
    let mut told =
        [client.next().await.unwrap(), client.next().await.unwrap()].map(|told| format!("{told:?}"));
    told.sort();
    assert!(told[0].contains(&format!("stream: 0, more: {wider} ")), "{told:?}");
    assert!(told[1].contains("stream: 3, more: 10 "), "{told:?}");

    assert_eq!(stdout.write(&[0; 5000]).await.unwrap(), 1000);
    assert!(timeout(Duration::from_secs(1), stdout.write(&[0; 5000])).await.is_err());
    client.window(5, 2000).await;
    assert_eq!(stdout.write(&[0; 5000]).await.unwrap(), 2000);
    client.window(5, 1_000_000).await;
    let mut sent = 3000;
    while let Ok(count) = timeout(Duration::from_secs(1), stdout.write(&[0; 500])).await {
        sent += count.unwrap();
    }
    assert_eq!(sent, 64 * 1024, "the window of the connection");
    client.window(0, 700).await;
    assert_eq!(stdout.write(&[0; 5000]).await.unwrap(), 700);

    let mut heard = 0;
    while heard < sent + 700 {
        let Some(Told::Data { bytes, .. }) = client.next().await else { panic!() };
        heard += bytes.len();
    }
    client.data(3, &[1; 40_000], false).await;
    stdin.read_exact(&mut [0; 40_000]).await.unwrap();
    let told = format!("{:?}", client.next().await);
    assert!(told.contains("Window { stream: 0, more: "), "{told}");
    let told = format!("{:?}", client.next().await);
    assert!(told.contains("Window { stream: 3, more: "), "{told}");
}

#[tokio::test(start_paused = true)]
async fn after_go_away_what_is_open_goes_on() {
    let (mut client, mut channels) = session().await;
    client.go_away().await;
    client.channel(9, "stdin").await;
    client.hears("Reset { stream: 9 }").await;
    channels.error.write_all(b"0").await.unwrap();
    drop(channels);
    let mut text = Vec::new();
    while let Some(told) = client.next().await {
        if let Told::Data { stream: 1, bytes, .. } = told {
            text.extend(bytes);
        }
    }
    assert_eq!(text, b"0");
}
