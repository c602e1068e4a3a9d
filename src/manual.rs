//! The manual: crimson(8) from the command line's declaration, crimson-config.toml(5) from the configuration's.
//!
//! What a reader cannot get from either declaration (signals, files, exit codes) is written here. Both pages are in
//! roff, for `man -l -` and for packages.

use std::io;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::cli::Cli;
use crate::config::docs;

/// Name of the set of pages, shown in the middle of the first line.
const MANUAL: &str = "Crimson";

const DESCRIPTION: &[&str] = &[
    "crimson serves the Kubernetes Container Runtime Interface (CRI) v1 on a unix socket: kubelet and crictl(1) ask it \
     for images, pods and containers. Pods get their network from CNI plugins, and containers are started by an OCI \
     runtime such as crun(1) or runc(8).",
    "Each pod has one process crimson-monitor, which owns its containers' output, logs and exit codes. The server may \
     be restarted, upgraded or killed at any moment: monitors and containers go on, and the next server finds them.",
    "Each start removes what an earlier server left of pods that are not on record. crimson check shows the same, also while \
     the server runs: monitors, cgroups, network namespaces, mounts, directories, image leases and networks without an owner, \
     and records that cannot be read. With --repair it removes them, which needs the server to be stopped. Damaged records are \
     set aside; those of another version are left. Only what bears this server's mark is touched outside its directories.",
    "crimson status says what the running server is doing: operations in flight with the step that each is at and since when, what is \
     undone behind, pulls, sessions, what is not ready. What has been at one step for longer than --stuck-after is marked with an \
     exclamation mark. It is answered from memory, also while an OCI runtime, a plugin or a disk hangs. The same as JSON, the log \
     level and the metrics are to be had over HTTP of the socket admin.sock in the state directory, by root: GET /status (with \
     ?pods for each pod), GET and PUT /log-level, GET /metrics, GET /healthz.",
    "crimson log-level changes how much the running server logs. It is not written down: a reload or restart brings back what the \
     configuration says.",
    "crimson doctor says what this host has of what pods may need: kernel, control groups, security modules, disks, OCI runtimes \
     with their known vulnerabilities, network plugins. What is missing comes with a command that mends it. It changes nothing, and \
     should be run as root, since it tries mounts and OCI runtimes out.",
];

const SIGNALS: &[(&str, &str)] = &[
    ("SIGTERM, SIGINT", "Ends the server once the calls in progress are done. Pods go on."),
    ("SIGHUP", "Reads the configuration anew."),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/crimson/config.toml", "The configuration; see crimson-config.toml(5). May be missing."),
    ("/etc/crimson/config.toml.d/*.toml", "Read after it, in the order of their names."),
    ("/etc/crimson/certs.d/HOST/hosts.toml", "Mirrors, certificates and credentials of a registry."),
    ("/etc/cni/net.d", "Configurations of the pods' network; the first valid one is used."),
    ("/run/crimson/crimson.sock", "The socket for kubelet and crictl(1)."),
    ("/run/crimson/admin.sock", "The socket for crimson status, HTTP/1.1, for root only."),
    ("/var/lib/crimson/broken", "Records that crimson check --repair has set aside."),
    ("/run/crimson", "What a reboot may take away."),
    ("/var/lib/crimson", "Images, writable layers and the records of pods."),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Success."),
    (
        "1",
        "The server failed, crimson config check found a problem, crimson doctor misses something without which no pod can run, or \
         crimson status shows something that is stuck or not ready.",
    ),
    (
        "2",
        "crimson status could not reach the server, or crimson check could not find out. The latter ends with 1 when it found, or with --repair left, anything, and else with 0.",
    ),
    ("64", "The command line or the configuration cannot be used."),
];

const CONFIG_DESCRIPTION: &[&str] = &[
    "crimson(8) reads /etc/crimson/config.toml, which may be missing, or the file named by --config, which may not. Then \
     it reads the files *.toml in the directory of the same name with .d appended, in the order of their names. What is \
     read later wins, and flags win over files. Tables are merged key by key; a list is replaced as a whole. A key that \
     is not listed here is an error.",
    "crimson config default prints a file with every key at its default, crimson config check reads the files as the \
     server would and prints every problem, and crimson config dump prints what is in force.",
];

/// The page crimson(8).
///
/// # Errors
/// Only such as writing to memory could have.
pub fn program() -> io::Result<String> {
    let mut command = Cli::command();
    command.build();
    let man = Man::new(command.clone()).section("8").manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    section("DESCRIPTION", |roff| paragraphs(roff, DESCRIPTION)).to_writer(&mut page)?;
    section("COMMANDS", |roff| commands(roff, &command)).to_writer(&mut page)?;
    if let Some(serve) = command.find_subcommand("serve") {
        Man::new(serve.clone()).render_options_section(&mut page)?;
    }
    for (title, entries) in [("SIGNALS", SIGNALS), ("FILES", FILES), ("EXIT STATUS", EXIT_STATUS)] {
        section(title, |roff| entries.iter().for_each(|(term, text)| entry(roff, term, text)))
            .to_writer(&mut page)?;
    }
    see_also("crimson-config.toml(5), crun(1), runc(8), crictl(1), systemd(1)").to_writer(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// The page crimson-config.toml(5).
#[must_use]
pub fn configuration() -> String {
    let mut page = Roff::new();
    let source = concat!("crimson ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["crimson-config.toml", "5", "", source, MANUAL]);
    page.control("SH", ["NAME"]);
    page.text([roman("crimson-config.toml - configuration of the Kubernetes CRI server crimson")]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([italic("/etc/crimson/config.toml")]);
    page.control("br", []);
    page.text([italic("/etc/crimson/config.toml.d/*.toml")]);
    page.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut page, CONFIG_DESCRIPTION);
    page.control("SH", ["KEYS"]);
    for table in docs::tables() {
        let title =
            if table.name.is_empty() { "Top of the file".to_owned() } else { format!("[{}]", table.name) };
        page.control("SS", [title.as_str()]);
        page.text([roman(docs::sentence(table.about))]);
        for key in &table.keys {
            let value = if table.is_example {
                format!(" (for example {})", key.value)
            } else {
                format!(" = {}", key.value)
            };
            page.control("TP", []);
            page.text([bold(key.name), roman(value)]);
            page.text([roman(docs::sentence(key.about))]);
        }
    }
    page.extend([see_also("crimson(8)")]);
    page.to_roff()
}

fn section(title: &str, fill: impl FnOnce(&mut Roff)) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    fill(&mut roff);
    roff
}

fn see_also(pages: &str) -> Roff {
    section("SEE ALSO", |roff| {
        roff.text([roman(pages)]);
    })
}

fn paragraphs(roff: &mut Roff, texts: &[&str]) {
    for text in texts {
        roff.control("PP", []);
        roff.text([roman(*text)]);
    }
}

fn entry(roff: &mut Roff, term: &str, text: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(text)]);
}

/// Every command that does something by itself, with its arguments.
fn commands(roff: &mut Roff, outer: &Command) {
    for command in outer.get_subcommands().filter(|command| !command.is_hide_set()) {
        if command.has_subcommands() {
            commands(roff, command);
            continue;
        }
        let name = command.get_bin_name().unwrap_or(command.get_name());
        let options = if command.get_opts().next().is_some() { " [OPTIONS]" } else { "" };
        let values: String = command.get_positionals().map(|value| format!(" {value}")).collect();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        entry(roff, &format!("{name}{options}{values}"), &format!("{about}."));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_s_page_has_every_command_and_flag() {
        let page = program().unwrap();
        let mut command = Cli::command();
        command.build();
        let serve = command.find_subcommand("serve").unwrap();
        let flags = serve.get_opts().filter_map(|flag| flag.get_long()).map(|flag| format!("--{flag}"));
        let commands = ["crimson serve", "crimson config check", "crimson man"].map(str::to_owned);
        for word in flags.chain(commands) {
            assert!(page.contains(&word.replace('-', "\\-")), "{word} is missing:\n{page}");
        }
    }

    #[test]
    fn the_configuration_s_page_has_every_key_with_its_meaning() {
        let page = configuration();
        for table in docs::tables() {
            for key in &table.keys {
                let heading = format!("\n.TP\n\\fB{}\\fR", key.name);
                assert!(page.contains(&heading), "{} is missing:\n{page}", key.name);
                let first = key.about[0].split_whitespace().take(3).collect::<Vec<_>>().join(" ");
                assert!(page.contains(&first.replace('-', "\\-")), "{first:?} is missing");
            }
        }
    }

    #[test]
    fn no_line_of_text_is_taken_for_a_request() {
        let known = [".TH", ".SH", ".SS", ".TP", ".PP", ".br", ".RS", ".RE", ".IP", ".ie", ".el", ".ds"];
        for page in [program().unwrap(), configuration()] {
            let strange = page
                .lines()
                .find(|line| line.starts_with('.') && !known.iter().any(|request| line.starts_with(request)));
            assert_eq!(strange, None);
        }
    }
}
