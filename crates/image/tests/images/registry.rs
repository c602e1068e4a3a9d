//! Debian's `docker-registry` on a loopback port that the kernel chooses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::builder::{Built, Family, digest};

/// bcrypt of `secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

pub(crate) struct Registry {
    process: Child,
    pub(crate) address: String,
}

/// How the registry is to be reached.
#[derive(Default)]
pub(crate) struct Access<'a> {
    /// Certificate and key files.
    pub(crate) tls: Option<(&'a Path, &'a Path)>,
    /// The authority of the clients it serves; needs `tls`.
    pub(crate) clients: Option<&'a Path>,
    /// Only `user` with the password `secret`.
    pub(crate) password: bool,
}

impl Registry {
    /// Starts a registry over the storage in `directory`.
    pub(crate) fn start(directory: &Path, name: &str, access: &Access<'_>) -> Self {
        let config = directory.join(format!("{name}.yml"));
        std::fs::write(&config, configuration(directory, access)).unwrap();
        let mut process = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry must be installed");
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let address = find_address(&mut log);
        // The registry would stop at a full pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { process, address }
    }

    pub(crate) fn push(&self, repository: &str, tag: &str, image: &Built) {
        self.push_manifest_only(repository, &digest(&image.manifest), image);
        self.put_manifest(repository, tag, image.family.manifest(), &image.manifest);
    }

    /// Pushes an image that is reached through an index.
    pub(crate) fn push_manifest_only(&self, repository: &str, digest: &str, image: &Built) {
        image.blobs.iter().for_each(|blob| self.push_blob(repository, blob));
        self.put_manifest(repository, digest, image.family.manifest(), &image.manifest);
    }

    pub(crate) fn push_index(&self, repository: &str, tag: &str, family: Family, index: &[u8]) {
        self.put_manifest(repository, tag, family.index(), index);
    }

    fn push_blob(&self, repository: &str, blob: &[u8]) {
        let (status, head) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        assert_eq!(status, 202, "{head}");
        let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim();
        let path = location.split_once(&self.address).map_or(location, |(_, path)| path);
        let path = format!("{path}&digest={}", digest(blob));
        let (status, head) = self.send("PUT", &path, "application/octet-stream", blob);
        assert_eq!(status, 201, "{head}");
    }

    fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: &[u8]) {
        let (status, head) =
            self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, manifest);
        assert_eq!(status, 201, "{head}");
    }

    /// One request over a connection of its own; the answer's status and all of its text.
    fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn configuration(directory: &Path, access: &Access<'_>) -> String {
    let mut text = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
        directory.join("storage").display()
    );
    if let Some((certificate, key)) = access.tls {
        text += &format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
    }
    if let Some(authority) = access.clients {
        text += &format!("    clientcas:\n      - {}\n", authority.display());
    }
    if access.password {
        let file = directory.join("htpasswd");
        std::fs::write(&file, HTPASSWD).unwrap();
        text += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
    }
    text
}

/// The registry logs the port it got.
fn find_address(log: &mut impl BufRead) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended: {seen}");
        if let Some((_, rest)) = line.split_once("listening on ") {
            return rest
                .split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))
                .next()
                .unwrap()
                .to_owned();
        }
        seen.push_str(&line);
    }
}
