//! Many exec sessions and forwarded connections, of which a tenth are cut at random moments.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Held, Random, Report, Stage, together};
use crate::streaming::{
    Dialer, Forwarded, Protocol, Remote, SPDY, SPDY_FORWARD, Streams, Tunnel, WEBSOCKET, WEBSOCKET_FORWARD,
    listen_in_network_of,
};
use crate::{ContainerSpec, Cri, Result};

/// The size of the trial.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many commands are run.
    pub commands: usize,
    /// How many connections are forwarded.
    pub connections: usize,
    /// How many commands or tunnels at a time.
    pub parallel: usize,
    /// By how many KiB the daemon and a monitor may have grown in the end, compared with the state after a fifth.
    pub growth_kib: u64,
    /// What decides who is cut, and when.
    pub seed: u64,
}

const PORT: u16 = 7070;
/// Connections of one tunnel over SPDY.
const PER_TUNNEL: usize = 10;
/// Within so many milliseconds a session is over that is not cut, mostly.
const LIFE: u64 = 150;
const SIZE: usize = 96 << 10;

/// Runs the commands and forwards the connections, looks what is left, and whether memory grows with their number.
pub async fn run(plan: Plan) -> Result<Report> {
    let stage = Stage::set("").await?;
    let clients = Clients::of(&stage).await?;
    let before = Held::by(&stage.node)?;
    let begun = Instant::now();
    let mut random = Random::new(plan.seed);
    clients.work(plan, 0, 1, &mut random).await?;
    before.comes_back(&stage.node).await?;
    let early = Held::by(&stage.node)?;
    for fifth in 1..5 {
        clients.work(plan, fifth, fifth + 1, &mut random).await?;
    }
    let took = begun.elapsed();
    before.comes_back(&stage.node).await?;
    let late = Held::by(&stage.node)?;
    let mut report = Report::default();
    report.note(format!(
        "{} commands and {} connections in {took:.1?}, a tenth of them cut: no descriptor, process or file is left; threads of the daemon {}, {}, {}",
        plan.commands, plan.connections, before.daemon.threads, early.daemon.threads, late.daemon.threads
    ));
    for (name, before, early, late) in [
        ("daemon", before.daemon, early.daemon, late.daemon),
        ("monitor", before.monitor, early.monitor, late.monitor),
    ] {
        let (first, fifth, last) = (before.resident_kib, early.resident_kib, late.resident_kib);
        report.note(format!(
            "resident: {name} {first} KiB at first, {fifth} KiB after a fifth, {last} KiB in the end"
        ));
        ensure!(
            last.saturating_sub(fifth) <= plan.growth_kib,
            "the {name}'s memory grows from {fifth} to {last} KiB"
        );
    }
    stage.finish().await?;
    Ok(report)
}

/// A pod with a container and, in its network, somebody who sends back what he gets.
#[derive(Clone)]
struct Clients {
    cri: Cri,
    dialer: Dialer,
    pod: String,
    container: String,
}

impl Clients {
    async fn of(stage: &Stage) -> Result<Self> {
        let (cri, machine) = (stage.node.cri(), stage.node.machine());
        let pod = stage.pod("streams");
        let pod_id = cri.run_pod(&pod).await?;
        let container = cri.run(&pod_id, &ContainerSpec::lasting("c", &stage.image), &pod).await?;
        let pid = cri.pause_pid(&pod_id).await?;
        let listener = listen_in_network_of(machine, pid, &format!("127.0.0.1:{PORT}")).await?;
        tokio::spawn(echo(listener));
        let clients = Self { cri, dialer: Dialer::on(machine), pod: pod_id, container };
        // What first sessions bring about, and stays.
        for protocol in [SPDY, WEBSOCKET] {
            clients.command(0, protocol).await?;
        }
        Ok(clients)
    }

    /// Some fifths of all work, commands and connections at the same time.
    async fn work(&self, plan: Plan, from: usize, to: usize, random: &mut Random) -> Result {
        let part = |whole: usize| (whole * from / 5)..(whole * to / 5);
        let turns = Arc::new(Semaphore::new(plan.parallel));
        let mut tasks: Vec<super::Work> = Vec::new();
        for n in part(plan.commands) {
            let (clients, turns, mut own) = (self.clone(), Arc::clone(&turns), random.fork());
            tasks.push(Box::pin(async move {
                let _turn = turns.acquire().await?;
                clients.one_command(n, &mut own).await.with_context(|| format!("command {n}"))
            }));
        }
        for n in part(plan.connections).step_by(PER_TUNNEL) {
            let (clients, turns, mut own) = (self.clone(), Arc::clone(&turns), random.fork());
            tasks.push(Box::pin(async move {
                let _turn = turns.acquire().await?;
                clients.one_tunnel(n, &mut own).await.with_context(|| format!("tunnel {n}"))
            }));
        }
        together(tasks).await.map(drop)
    }

    async fn one_command(&self, n: usize, random: &mut Random) -> Result {
        let protocol = if n.is_multiple_of(2) { SPDY } else { WEBSOCKET };
        if n % 10 != 3 {
            return self.command(n, protocol).await;
        }
        // Wherever it is then, it is left there without a word.
        let line = ["exec cat", "exec busybox yes", "sleep 7777 & sleep 7777"];
        let endless = self.endless(line.get(n / 10 % 3).copied().unwrap_or_default(), protocol);
        ensure!(
            timeout(random.milliseconds(0, LIFE), endless).await.map(|done| done.is_ok()) != Ok(true),
            "it ended"
        );
        Ok(())
    }

    async fn command(&self, n: usize, protocol: Protocol) -> Result {
        let (code, terminal) = (n % 200, n % 5 == 1);
        let streams = if terminal { Streams::TERMINAL } else { Streams::ALL };
        let line = format!("head -c {SIZE} | wc -c; exit {code}");
        let line = if terminal { format!("echo {SIZE}; exit {code}") } else { line };
        let url = self.cri.exec_url(&self.container, &["sh", "-c", &line], streams).await?;
        let mut remote = Remote::open(&self.dialer, &url, protocol, streams).await?;
        if terminal {
            remote.input().resize(80, 24).await?;
        } else {
            remote.send(vec![b'x'; SIZE]).await?;
        }
        let outcome = remote.finish().await?;
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        ensure!(text.trim() == SIZE.to_string(), "{outcome:?}");
        ensure!(usize::try_from(outcome.code()?) == Ok(code), "{outcome:?}");
        Ok(())
    }

    async fn endless(&self, line: &str, protocol: Protocol) -> Result {
        let url = self.cri.exec_url(&self.container, &["sh", "-c", line], Streams::ALL).await?;
        let mut remote = Remote::open(&self.dialer, &url, protocol, Streams::ALL).await?;
        remote.send(vec![b'x'; SIZE]).await?;
        while remote.read().await? {}
        Ok(())
    }

    /// So many connections, all in one tunnel where the transport can do that.
    async fn one_tunnel(&self, n: usize, random: &mut Random) -> Result {
        if n / PER_TUNNEL % 5 == 4 {
            for _ in 0..PER_TUNNEL {
                let tunnel = self.tunnel(WEBSOCKET_FORWARD).await?;
                one_connection(&tunnel, random).await?;
            }
            return Ok(());
        }
        let protocol = if n / PER_TUNNEL % 5 == 3 { Protocol::Tunnelled } else { SPDY_FORWARD };
        let tunnel = Arc::new(self.tunnel(protocol).await?);
        let mut connections: Vec<super::Work> = Vec::new();
        for place in 0..PER_TUNNEL {
            let (tunnel, mut own) = (Arc::clone(&tunnel), random.fork());
            connections.push(Box::pin(async move {
                if place == 3 {
                    broken_connection(&tunnel, &mut own).await
                } else {
                    one_connection(&tunnel, &mut own).await
                }
            }));
        }
        together(connections).await?;
        ensure!(!tunnel.is_closed(), "a broken connection has closed its tunnel");
        // Every other tunnel is cut in the middle of a transfer.
        if n / PER_TUNNEL % 2 == 1 {
            let mut connection = tunnel.connect(PORT).await?;
            connection.send(random.bytes(SIZE)).await?;
        }
        Ok(())
    }

    async fn tunnel(&self, protocol: Protocol) -> Result<Tunnel> {
        let url = self.cri.forward_url(&self.pod, &[PORT]).await?;
        Tunnel::open(&self.dialer, &url, protocol, &[PORT]).await
    }
}

async fn one_connection(tunnel: &Tunnel, random: &mut Random) -> Result {
    let mut connection = tunnel.connect(PORT).await?;
    let bytes = random.bytes(SIZE);
    exchange(&mut connection, &bytes).await
}

/// Bytes there and back.
async fn exchange(connection: &mut Forwarded, bytes: &[u8]) -> Result {
    connection.send(bytes).await?;
    let back = connection.read_exact(bytes.len()).await?;
    ensure!(back == bytes, "the bytes came back changed");
    Ok(())
}

/// A connection that its client breaks off somewhere.
async fn broken_connection(tunnel: &Tunnel, random: &mut Random) -> Result {
    let mut connection = tunnel.connect(PORT).await?;
    let (bytes, moment) = (random.bytes(SIZE), random.milliseconds(0, LIFE));
    // It goes on until its time is over, unless it fails, which is told. What is sent is sent whole: half a frame would
    // break the tunnel of all.
    let end = Instant::now() + moment;
    loop {
        connection.send(&bytes).await?;
        match timeout_at(end, connection.read_exact(bytes.len())).await {
            Ok(back) => ensure!(back? == bytes, "the bytes came back changed"),
            Err(_) => return connection.reset().await,
        }
    }
}

async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = stream.split();
            // Connections are broken off all the time here.
            drop(tokio::io::copy(&mut reader, &mut writer).await);
            drop(writer.shutdown().await);
            drop(timeout(Duration::from_secs(5), reader.read_to_end(&mut Vec::new())).await);
        });
    }
}
