//! A client that does anything in any order, as long as it is SPDY: the connection stays alive and answers, and when it leaves, all
//! that it has opened ends.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::fuzzing::Told;
use super::super::{Limits, forwards};
use super::LIMITS;
use super::client::{Client, client};
use crate::channels::Forwarded;

/// What the client does next. Streams are those that it has opened, counted around.
#[derive(Debug, Clone)]
enum Action {
    Half { data: bool, request: u8, behaviour: u8 },
    Odd,
    Data { stream: usize, length: usize, last: bool },
    Reset { stream: usize },
    Window { stream: usize, more: u32 },
    WindowOfAll(u32),
    Initial(u32),
    Wait,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (any::<bool>(), 0..8u8, 1..5u8)
            .prop_map(|(data, request, behaviour)| Action::Half { data, request, behaviour }),
        1 => Just(Action::Odd),
        8 => (any::<usize>(), 0..20_000usize, prop::bool::weighted(0.2))
            .prop_map(|(stream, length, last)| Action::Data { stream, length, last }),
        2 => any::<usize>().prop_map(|stream| Action::Reset { stream }),
        1 => (any::<usize>(), any::<u32>()).prop_map(|(stream, more)| Action::Window { stream, more }),
        1 => any::<u32>().prop_map(Action::WindowOfAll),
        1 => (0..100_000u32).prop_map(Action::Initial),
        2 => Just(Action::Wait),
    ]
}

async fn act(client: &mut Client, action: Action, opened: &mut u32) {
    let chosen = |stream: usize, opened: u32| {
        u32::try_from(stream % usize::try_from(opened.max(1)).unwrap()).unwrap() * 2 + 1
    };
    let next = *opened * 2 + 1;
    match action {
        Action::Half { data, request, behaviour } => {
            *opened += 1;
            let kind = if data { "data" } else { "error" };
            client.half(next, kind, &behaviour.to_string(), &request.to_string()).await;
        }
        Action::Odd => {
            *opened += 1;
            client.channel(next, "nonsense").await;
        }
        Action::Wait => tokio::time::sleep(Duration::from_secs(7)).await,
        Action::Initial(window) => client.settings(&[(7, window)]).await,
        Action::WindowOfAll(more) => client.window(0, more & 0x7fff_ffff).await,
        _ if *opened == 0 => {}
        Action::Data { stream, length, last } => {
            client.data(chosen(stream, *opened), &vec![0; length], last).await;
        }
        Action::Reset { stream } => client.reset(chosen(stream, *opened)).await,
        Action::Window { stream, more } => client.window(chosen(stream, *opened), more & 0x7fff_ffff).await,
    }
}

/// The other side of a forwarded connection: echoes, resets, never reads, or is gone at once.
async fn behave(mut forwarded: Forwarded) {
    let mut buffer = vec![0; 5000];
    match forwarded.port {
        1 => {
            while let Ok(count @ 1..) = forwarded.input.read(&mut buffer).await {
                if forwarded.output.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
        }
        2 => {
            drop(forwarded.error.write_all(b"no").await);
            forwarded.reset.cancel();
        }
        3 => forwarded.reset.cancelled().await,
        _ => {}
    }
}

/// Everything that the client does, while it reads what it is told; then a ping.
async fn talk(actions: Vec<Action>) {
    let (mut client, io) = client();
    let mut forwards = forwards(io, Limits { pairs: 5, ..LIMITS });
    let sessions = tokio::spawn(async move {
        let mut sessions = JoinSet::new();
        while let Some(forwarded) = forwards.recv().await {
            sessions.spawn(behave(forwarded));
        }
        while let Some(session) = sessions.join_next().await {
            session.unwrap();
        }
    });
    let mut opened = 0;
    for action in actions {
        act(&mut client, action, &mut opened).await;
        while timeout(Duration::from_millis(1), client.next()).await.is_ok_and(|told| told.is_some()) {}
    }
    client.ping(1).await;
    while client.next().await.expect("the connection is alive") != Told::Other("Ping(1)".to_owned()) {}
    drop(client);
    sessions.await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_client_may_do_anything(actions in prop::collection::vec(action(), 0..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(talk(actions));
    }
}
