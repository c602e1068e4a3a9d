use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::super::fuzzing::Told;
use super::super::{forward, forwards};
use super::LIMITS;
use super::client::{Client, NETWORK, client};
use crate::channels::{Forwarded, Forwards};

async fn pair(client: &mut Client, forwards: &mut Forwards, first: u32, port: &str) -> Forwarded {
    let request = first.to_string();
    client.half(first, "error", port, &request).await;
    client.half(first + 2, "data", port, &request).await;
    forwards.recv().await.unwrap()
}

/// That both directions of a pair work.
async fn works(client: &mut Client, stream: u32, forwarded: &mut Forwarded) {
    client.data(stream, b"there", false).await;
    let mut there = [0; 5];
    forwarded.input.read_exact(&mut there).await.unwrap();
    assert_eq!(&there, b"there");
    forwarded.output.write_all(b"back").await.unwrap();
    assert_eq!(client.next().await, Some(Told::Data { stream, bytes: b"back".to_vec(), last: false }));
}

#[tokio::test(start_paused = true)]
async fn pairs_are_joined_in_any_order() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    client.half(1, "error", "80", "a").await;
    client.half(3, "data", "81", "b").await;
    client.half(5, "error", "81", "b").await;
    let mut second = forwards.recv().await.unwrap();
    client.half(7, "data", "80", "a").await;
    let mut first = forwards.recv().await.unwrap();
    assert_eq!((second.port, first.port), (81, 80));
    works(&mut client, 3, &mut second).await;
    works(&mut client, 7, &mut first).await;
}

#[tokio::test(start_paused = true)]
async fn old_clients_name_no_request() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    for (stream, kind, port) in [(1, "error", "80"), (3, "data", "80"), (5, "error", "81"), (7, "data", "81")]
    {
        client.open(stream, &[("streamtype", kind), ("port", port)]).await;
    }
    let (mut first, mut second) = (forwards.recv().await.unwrap(), forwards.recv().await.unwrap());
    assert_eq!((first.port, second.port), (80, 81));
    works(&mut client, 3, &mut first).await;
    works(&mut client, 7, &mut second).await;
}

#[tokio::test(start_paused = true)]
async fn either_direction_ends_alone() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let mut forwarded = pair(&mut client, &mut forwards, 1, "80").await;
    client.data(3, b"question", true).await;
    let mut question = String::new();
    forwarded.input.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    forwarded.output.write_all(b"answer").await.unwrap();
    forwarded.output.shutdown().await.unwrap();
    client.hears_end_of(3, b"answer").await;

    let mut forwarded = pair(&mut client, &mut forwards, 5, "80").await;
    forwarded.output.shutdown().await.unwrap();
    client.hears_end_of(7, b"").await;
    client.data(7, b"more", true).await;
    let mut more = String::new();
    forwarded.input.read_to_string(&mut more).await.unwrap();
    assert_eq!(more, "more");
    assert!(!forwarded.reset.is_cancelled());
    drop(forwarded);
    client.hears_end_of(5, b"").await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_by_either_side_touches_no_neighbour() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let mut ours = pair(&mut client, &mut forwards, 1, "80").await;
    let mut theirs = pair(&mut client, &mut forwards, 5, "80").await;
    let mut neighbour = pair(&mut client, &mut forwards, 9, "80").await;

    ours.error.write_all(b"refused").await.unwrap();
    ours.reset.cancel();
    assert_eq!(client.next().await, Some(Told::Data { stream: 1, bytes: b"refused".to_vec(), last: false }));
    client.hears("Reset { stream: 1 }").await;
    client.hears("Reset { stream: 3 }").await;
    assert_eq!(ours.output.write_all(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(ours.input.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);

    client.data(7, b"lost", false).await;
    client.reset(7).await;
    theirs.reset.cancelled().await;
    assert_eq!(theirs.input.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    client.hears("Reset { stream: 5 }").await;
    drop((ours, theirs));

    works(&mut client, 11, &mut neighbour).await;
    let mut another = pair(&mut client, &mut forwards, 13, "80").await;
    works(&mut client, 15, &mut another).await;
}

#[tokio::test(start_paused = true)]
async fn a_half_that_stays_alone_is_reset_after_a_while() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let begun = Instant::now();
    let mut neighbour = pair(&mut client, &mut forwards, 1, "80").await;
    client.half(5, "data", "80", "lonely").await;
    client.hears("Reset { stream: 5 }").await;
    assert_eq!(begun.elapsed().as_secs(), LIMITS.creation.as_secs());
    // What comes now is another pair.
    client.half(7, "error", "80", "lonely").await;
    client.half(9, "data", "80", "lonely").await;
    let mut forwarded = forwards.recv().await.unwrap();
    works(&mut client, 9, &mut forwarded).await;
    works(&mut client, 3, &mut neighbour).await;
}

#[tokio::test(start_paused = true)]
async fn pairs_beyond_the_bound_are_refused_until_others_end() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let mut pairs = Vec::new();
    for first in [1, 5, 9] {
        pairs.push(pair(&mut client, &mut forwards, first, "80").await);
    }
    client.half(13, "error", "80", "half").await;
    client.half(15, "error", "80", "one too many").await;
    client.hears("Reset { stream: 15 }").await;
    client.half(17, "data", "80", "half").await;
    let mut last = forwards.recv().await.unwrap();
    works(&mut client, 17, &mut last).await;

    drop(pairs.remove(0));
    // Error and data end, and what the client might still send is not wanted.
    for _ in 0..3 {
        client.next().await.unwrap();
    }
    let mut another = pair(&mut client, &mut forwards, 19, "80").await;
    works(&mut client, 21, &mut another).await;
}

#[tokio::test(start_paused = true)]
async fn streams_that_make_no_sense_are_reset_one_by_one() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let nonsense: [&[(&str, &str)]; 6] = [
        &[],
        &[("streamtype", "data")],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "65536")],
        &[("streamtype", "stdin"), ("port", "80")],
        &[("port", "80")],
    ];
    for (stream, headers) in (1..).step_by(2).zip(nonsense) {
        client.open(stream, headers).await;
        client.hears(&format!("Reset {{ stream: {stream} }}")).await;
    }
    client.half(21, "data", "80", "twin").await;
    client.half(23, "data", "80", "twin").await;
    client.hears("Reset { stream: 23 }").await;
    client.half(25, "error", "80", "twin").await;
    let mut forwarded = forwards.recv().await.unwrap();
    works(&mut client, 21, &mut forwarded).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_read_holds_up_the_others_only_so_far() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let stuck = pair(&mut client, &mut forwards, 1, "80").await;
    let mut neighbour = pair(&mut client, &mut forwards, 5, "80").await;
    client.data(3, &vec![0; forward::BOUNDS.stream], false).await;
    works(&mut client, 7, &mut neighbour).await;

    let mut frame = vec![0, 0, 0, 3, 0, 0xff, 0xff, 0xff];
    frame.resize(8 + 0xff_ffff, 5);
    let taken = client.flood(&frame, frame.len()).await;
    assert!(taken < 3 * NETWORK, "{taken}");
    // After 30 s it is given up. The rest of its frame still comes, and then the others go on.
    let (rest, ()) = tokio::join!(client.raw(&frame[taken..]), stuck.reset.cancelled());
    let () = rest;
    let mut heard = String::new();
    while !heard.contains("Reset { stream: 3 }") {
        heard += &format!("{:?}", client.next().await.unwrap());
    }
    while timeout(Duration::from_secs(1), client.next()).await.is_ok() {}
    works(&mut client, 7, &mut neighbour).await;
}

#[tokio::test(start_paused = true)]
async fn alone_a_connection_may_wait_for_as_long_as_it_likes() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let mut slow = pair(&mut client, &mut forwards, 1, "80").await;
    let mut frame = vec![0, 0, 0, 3, 0, 0xff, 0xff, 0xff];
    frame.resize(8 + 0xff_ffff, 5);
    let taken = client.flood(&frame, frame.len()).await;
    assert!(taken < forward::BOUNDS.stream + 3 * NETWORK, "{taken}");
    sleep(Duration::from_secs(600)).await;
    let rest = frame.split_off(taken);
    let sender = tokio::spawn(async move {
        client.raw(&rest).await;
        client
    });
    let mut read = vec![0; 0xff_ffff];
    slow.input.read_exact(&mut read).await.unwrap();
    drop(sender.await);
}

#[tokio::test(start_paused = true)]
async fn all_streams_together_are_bounded() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, super::super::Limits { pairs: 100, ..LIMITS });
    let mut pairs = Vec::new();
    for first in 0..20 {
        pairs.push(pair(&mut client, &mut forwards, 1 + 4 * first, "80").await);
    }
    let mut taken = 0;
    for first in 0..20u32 {
        let mut frame = (3 + 4 * first).to_be_bytes().to_vec();
        frame.extend([0, 0x0f, 0, 0]);
        frame.resize(8 + 0x0f_0000, 0);
        let count = client.flood(&frame, frame.len()).await;
        taken += count;
        if count < frame.len() {
            break;
        }
    }
    assert!(taken < forward::BOUNDS.connection + 4 * NETWORK, "{taken}");
    assert!(taken > forward::BOUNDS.connection, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn when_the_client_leaves_all_pairs_end() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let mut forwarded = pair(&mut client, &mut forwards, 1, "80").await;
    client.half(5, "error", "80", "half").await;
    drop(client);
    forwarded.reset.cancelled().await;
    assert_eq!(forwarded.input.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert!(forwards.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn when_nobody_wants_more_the_open_ones_go_on_to_their_end() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let mut forwarded = pair(&mut client, &mut forwards, 1, "80").await;
    client.half(5, "error", "80", "half").await;
    drop(forwards);
    client.hears_end_of(5, b"").await;
    client.half(7, "data", "80", "half").await;
    client.hears("Reset { stream: 7 }").await;
    works(&mut client, 3, &mut forwarded).await;
    drop(forwarded);
    let mut last = None;
    while let Some(told) = client.next().await {
        last = Some(told);
    }
    assert_eq!(last, Some(Told::Other("GoAway".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_ends_whatever_pings_say() {
    let (mut client, io) = client();
    let mut forwards = forwards(io, LIMITS);
    let forwarded = pair(&mut client, &mut forwards, 1, "80").await;
    let begun = Instant::now();
    sleep(LIMITS.idle / 2).await;
    client.ping(1).await;
    assert!(forwards.recv().await.is_none());
    assert_eq!(begun.elapsed().as_secs(), LIMITS.idle.as_secs());
    assert!(forwarded.reset.is_cancelled());
}
