//! Debian's `docker-registry` on a loopback port of the machine, with storage of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::{ImageBuilder, Machine, PushedImage, Result};

/// The user of registries that ask for one.
pub const USER: &str = "kubelet";
/// That user's password.
pub const PASSWORD: &str = "wrong horse";
/// The password as htpasswd keeps it (bcrypt with 16 rounds, the cheapest the registry accepts).
const HTPASSWD: &str = "kubelet:$2b$04$cEdn78qenyHsD.tJr0VZiuPb3zFkmuXJFJhUyBrD1rxrluHG0jzg2\n";

/// A running registry over plain HTTP, and beside it one over HTTPS with the same content once asked for.
#[derive(Debug)]
pub struct Registry {
    machine: Arc<Machine>,
    dir: TempDir,
    host: String,
    secure_host: String,
    processes: Vec<Child>,
}

impl Registry {
    /// Starts a registry and waits until it listens.
    pub async fn start(machine: &Arc<Machine>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("crimson-registry-").tempdir()?;
        let ports = if machine.is_private() { [5000, 5443] } else { [free_port()?, free_port()?] };
        let [host, secure_host] = ports.map(|port| format!("127.0.0.1:{port}"));
        let mut registry =
            Self { machine: Arc::clone(machine), dir, host, secure_host, processes: Vec::new() };
        registry.serve("plain.yml", &registry.config(&registry.host, "", "")).await?;
        Ok(registry)
    }

    /// Serves the same content also over HTTPS to [`USER`] only; the daemon learns of the certificate by its hosts file.
    pub async fn start_secure(&mut self) -> Result {
        let (certificate, key) = self.make_certificate().await?;
        let password_file = self.dir.path().join("htpasswd");
        std::fs::write(&password_file, HTPASSWD)?;
        let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
        let auth = format!("auth:\n  htpasswd:\n    realm: e2e\n    path: {}\n", password_file.display());
        self.serve("secure.yml", &self.config(&self.secure_host, &tls, &auth)).await
    }

    /// `host:port` of the plain registry.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `host:port` of the registry with TLS and password.
    #[must_use]
    pub fn secure_host(&self) -> &str {
        &self.secure_host
    }

    /// Pushes an image.
    pub async fn push(&self, image: ImageBuilder, name: &str, tag: &str) -> Result<PushedImage> {
        let (host, name, tag) = (self.host.clone(), name.to_owned(), tag.to_owned());
        self.machine.in_network(move || image.push(&host, &name, &tag)).await?
    }

    /// Tells a daemon how to reach the registries, in the hosts files of its registry configuration directory.
    pub fn describe_to(&self, registry_config_dir: &Path) -> Result {
        let plain = format!(
            "server = \"http://{0}\"\n\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            self.host
        );
        let secure = format!(
            "server = \"https://{0}\"\nca = \"{1}\"\n",
            self.secure_host,
            self.dir.path().join("authority.crt").display()
        );
        for (host, text) in [(&self.host, plain), (&self.secure_host, secure)] {
            let dir = registry_config_dir.join(host);
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("hosts.toml"), text)?;
        }
        Ok(())
    }

    /// Overwrites one byte in the middle of a stored blob, as a failing disk would.
    pub fn corrupt(&self, digest: &str) -> Result {
        let path = self.blob_path(digest)?;
        let mut bytes = std::fs::read(&path)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("an empty blob")? ^= 0x55;
        std::fs::File::create(&path)?.write_all(&bytes).context("writing the corrupt blob")
    }

    /// Deletes a stored blob behind the registry's back.
    pub fn lose(&self, digest: &str) -> Result {
        std::fs::remove_file(self.blob_path(digest)?).context("removing the blob")
    }

    fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").context("a sha256 digest")?;
        let shard = hex.get(..2).context("a full digest")?;
        Ok(self.dir.path().join(format!("storage/docker/registry/v2/blobs/sha256/{shard}/{hex}/data")))
    }

    fn config(&self, host: &str, tls: &str, auth: &str) -> String {
        let storage = self.dir.path().join("storage");
        format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{tls}{auth}",
            storage.display()
        )
    }

    async fn serve(&mut self, name: &str, config: &str) -> Result {
        let path = self.dir.path().join(name);
        std::fs::write(&path, config)?;
        let mut child = self
            .machine
            .command("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting docker-registry (package docker-registry)")?;
        let stderr = child.stderr.take().context("the registry's log")?;
        self.processes.push(child);
        let mut lines = BufReader::new(stderr).lines();
        let listening = async {
            let mut seen = String::new();
            while let Some(line) = lines.next_line().await? {
                if line.contains("listening on") {
                    return Ok(());
                }
                seen.push_str(&line);
                seen.push('\n');
            }
            bail!("docker-registry ended early:\n{seen}")
        };
        tokio::time::timeout(crate::patience(30), listening)
            .await
            .context("docker-registry does not listen")??;
        // Its log goes on; a full pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(())
    }

    /// An authority of our own and a certificate by it, as a company's registry has them.
    async fn make_certificate(&self) -> Result<(PathBuf, PathBuf)> {
        let path = |name: &str| self.dir.path().join(name);
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let text = |path: &Path| path.display().to_string();
        let (authority, authority_key) = (text(&path("authority.crt")), text(&path("authority.key")));
        let (certificate, key) = (text(&path("registry.crt")), text(&path("registry.key")));
        let mut make = vec!["req", "-x509", "-days", "2", "-subj", "/CN=e2e authority"];
        make.extend(new_key);
        make.extend(["-keyout", &authority_key, "-out", &authority]);
        openssl(&make).await?;
        let mut sign = vec![
            "req",
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=e2e registry",
            "-CA",
            &authority,
            "-CAkey",
            &authority_key,
        ];
        sign.extend(new_key);
        sign.extend([
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]);
        sign.extend(["-keyout", &key, "-out", &certificate]);
        openssl(&sign).await?;
        Ok((path("registry.crt"), path("registry.key")))
    }
}

async fn openssl(args: &[&str]) -> Result {
    let output =
        tokio::process::Command::new("openssl").args(args).output().await.context("running openssl")?;
    if !output.status.success() {
        bail!("openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

impl Drop for Registry {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let inner = child.id().and_then(|id| crate::process::only_child(id).ok());
            if let Some(pid) = inner.filter(|_| self.machine.has_own_processes()) {
                drop(crate::process::signal(pid, rustix::process::Signal::KILL));
            }
            drop(child.start_kill());
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
