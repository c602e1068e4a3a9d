//! Looking images up by anything people call them. Pure and immutable: every change of the store builds a new index.

use std::collections::HashMap;
use std::sync::Arc;

use crate::record::ImageRecord;
use crate::reference::Reference;

/// All stored images and the names they answer to.
#[derive(Debug, Default)]
pub(crate) struct Index {
    images: Vec<Arc<ImageRecord>>,
    names: HashMap<String, Arc<ImageRecord>>,
}

impl Index {
    pub(crate) fn new(mut images: Vec<Arc<ImageRecord>>) -> Self {
        images.sort_by(|a, b| a.id.cmp(&b.id));
        let mut names = HashMap::new();
        for image in &images {
            for name in image.repo_tags.iter().chain(&image.repo_digests) {
                names.insert(name.clone(), Arc::clone(image));
            }
        }
        Self { images, names }
    }

    pub(crate) fn images(&self) -> &[Arc<ImageRecord>] {
        &self.images
    }

    /// By whole id, then as a reference, then as the prefix of exactly one id.
    pub(crate) fn resolve(&self, text: &str) -> Option<Arc<ImageRecord>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        self.by_id(hex).or_else(|| self.by_name(text)).or_else(|| self.by_prefix(hex))
    }

    fn by_id(&self, hex: &str) -> Option<Arc<ImageRecord>> {
        let at = self.images.binary_search_by(|image| image.id.0.hex().cmp(hex)).ok()?;
        self.images.get(at).cloned()
    }

    fn by_name(&self, text: &str) -> Option<Arc<ImageRecord>> {
        let reference = Reference::parse(text).ok()?;
        self.names.get(&reference.to_string()).cloned()
    }

    fn by_prefix(&self, hex: &str) -> Option<Arc<ImageRecord>> {
        if hex.is_empty() {
            return None;
        }
        let mut matching = self.images.iter().filter(|image| image.id.0.hex().starts_with(hex));
        let first = matching.next()?;
        matching.next().is_none().then(|| Arc::clone(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::ImageConfiguration;
    use types::{Digest, ImageId, Timestamp};

    fn image(hex_start: &str, tags: &[&str], digests: &[String]) -> Arc<ImageRecord> {
        let digest: Digest = format!("sha256:{hex_start:0<64}").parse().unwrap();
        Arc::new(ImageRecord {
            id: ImageId(digest.clone()),
            repo_tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            repo_digests: digests.to_vec(),
            size: 1,
            pinned: false,
            config: Arc::new(ImageConfiguration::default()),
            layers: Vec::new(),
            chain_id: digest.clone(),
            manifest: digest,
            pulled_at: Timestamp::UNSET,
        })
    }

    #[test]
    fn every_way_of_naming_an_image_finds_it() {
        let manifest = format!("sha256:{}", "cd".repeat(32));
        let digest_name = format!("docker.io/library/busybox@{manifest}");
        let index = Index::new(vec![
            image("abc1", &["docker.io/library/busybox:latest"], &[digest_name]),
            image("abc2", &["registry.example/cafe:1"], &[]),
            image("cafe", &["docker.io/library/abc1:latest"], &[]),
        ]);
        let abc1 = format!("{:0<64}", "abc1");
        let finds = [
            ("busybox", "abc1"),
            ("busybox:latest", "abc1"),
            ("docker.io/library/busybox:latest", "abc1"),
            (&format!("busybox@{manifest}"), "abc1"),
            (&format!("busybox:other@{manifest}"), "abc1"),
            (&abc1, "abc1"),
            (&format!("sha256:{abc1}"), "abc1"),
            ("sha256:abc1", "abc1"),
            ("abc2", "abc2"),
            ("caf", "cafe"),
            ("abc1", "cafe"),
            ("registry.example/cafe:1", "abc2"),
        ];
        for (text, expected) in finds {
            let found = index.resolve(text).unwrap_or_else(|| panic!("{text} must be found"));
            assert!(found.id.0.hex().starts_with(expected), "{text}");
        }
        for text in ["", "sha256:", "abc", "busybox:1", "registry.example/cafe", "nothing", "sha256:ff", "%"]
        {
            assert!(index.resolve(text).is_none(), "{text:?} must not be found");
        }
    }
}
