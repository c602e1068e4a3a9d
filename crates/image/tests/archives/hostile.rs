//! Archives that mean harm: each is refused for what it is, and nothing of it remains.

use image::{EntryError, ImageError, TarError, UnpackError};
use serde_json::json;
use tar::EntryType;

use super::builder::{Fixture, Layer, Layout, config, digest, gzip, hex};
use super::layout_of;

/// Loads it, and makes sure that nothing is left.
fn refusal(fixture: &Fixture, archive: Vec<u8>) -> ImageError {
    let (before, usage) = (fixture.tree(), fixture.images.usage().used_bytes);
    let error = fixture.load(archive).expect_err("it must be refused");
    assert_eq!(fixture.tree(), before, "{}", types::error::chain(&error));
    assert_eq!(fixture.images.usage().used_bytes, usage);
    assert!(fixture.images.list().is_empty());
    error
}

fn with_layer(layer: &[u8]) -> (Vec<u8>, String) {
    // A good layer goes first: of it nothing may stay either.
    let good = Layer::new().file("good", b"good").build();
    let mut layout = Layout::new();
    let image = layout.image(&[&good, layer], gzip);
    layout.add(image, Some(("io.containerd.image.name", "example.com/hostile:1")));
    (layout.tar(), digest(&gzip(layer)))
}

fn header(change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("entry").unwrap();
    header.set_size(0);
    header.set_mode(0o644);
    change(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn hostile_layers_are_refused_by_layer_and_entry() {
    type Expected = fn(&EntryError) -> bool;
    let long = "n".repeat(300);
    let deep = "d/".repeat(600) + "x";
    let value = vec![1; 70_000];
    let cases: Vec<(&str, Layer, Expected)> = vec![
        ("../up", Layer::new().file("../up", b"x"), |e| matches!(e, EntryError::Outside)),
        ("a/../../up", Layer::new().file("a/../../up", b"x"), |e| matches!(e, EntryError::Outside)),
        ("/../../up", Layer::new().file("/../../up", b"x"), |e| matches!(e, EntryError::Outside)),
        ("out/up", Layer::new().file("out", b"").file("out/up", b"x"), |e| {
            matches!(e, EntryError::NotADirectory)
        }),
        ("link", Layer::new().hard_link("link", "../../etc/passwd"), |e| {
            matches!(e, EntryError::LinkOutside(_))
        }),
        ("link", Layer::new().hard_link("link", "/etc/passwd"), |e| {
            matches!(e, EntryError::LinkTarget { .. })
        }),
        ("l/x", Layer::new().symlink("l", "/etc").hard_link("l/x", "l/passwd"), |e| {
            matches!(e, EntryError::LinkTarget { .. })
        }),
        ("a/x", Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", b""), |e| {
            matches!(e, EntryError::Io { .. })
        }),
        (".wh..", Layer::new().file(".wh..", b""), |e| matches!(e, EntryError::Name(_))),
        ("a/.wh...", Layer::new().file("a/x", b"").file("a/.wh...", b""), |e| {
            matches!(e, EntryError::Name(_))
        }),
        (".", Layer::new().symlink(".", "/etc"), |e| matches!(e, EntryError::Name(_))),
        ("a\0b", Layer::new().pax(&[("path", b"a\0b")]).file("x", b""), |e| matches!(e, EntryError::Name(_))),
        (&long, Layer::new().pax(&[("path", long.as_bytes())]).file("x", b""), |e| {
            matches!(e, EntryError::Name(_))
        }),
        (&deep, Layer::new().pax(&[("path", deep.as_bytes())]).file("x", b""), |e| {
            matches!(e, EntryError::TooDeep)
        }),
        ("x", Layer::new().pax(&[("SCHILY.xattr.user.v", &value)]).file("x", b""), |e| {
            matches!(e, EntryError::Bounds(_))
        }),
        (
            "vast",
            Layer::new().raw(&header(|h| {
                h.set_path("vast").unwrap();
                h.set_size(1 << 50)
            })),
            |e| matches!(e, EntryError::Bounds(_)),
        ),
        (
            "cut",
            Layer::new().raw(&header(|h| {
                h.set_path("cut").unwrap();
                h.set_size(1 << 20)
            })),
            |e| matches!(e, EntryError::Data(TarError::Truncated)),
        ),
    ];
    let fixture = Fixture::new();
    for (entry, layer, expected) in cases {
        let (archive, blob) = with_layer(&layer.build());
        let error = refusal(&fixture, archive);
        let ImageError::Unpack { layer, source, reference } = &error else { panic!("{entry:?}: {error:?}") };
        assert_eq!((reference.as_str(), layer.to_string()), ("example.com/hostile:1", blob));
        let UnpackError::Entry { entry: named, problem } = source else { panic!("{entry:?}: {source:?}") };
        assert_eq!(named, entry);
        assert!(expected(problem), "{entry:?}: {problem:?}");
    }
}

#[test]
fn layers_that_are_no_archives_are_refused_by_the_entry_before() {
    let good = || Layer::new().file("before", b"");
    let cut_after_header = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 700);
        bytes
    };
    let cases = [
        good().raw(&[b'x'; 512]).build(),
        good().raw(&header(|h| h.set_entry_type(EntryType::new(b'Z')))).build(),
        good().raw(&header(|h| h.set_uid(u64::from(u32::MAX)))).build(),
        good()
            .raw(&header(|h| {
                h.set_entry_type(EntryType::XHeader);
                h.set_size(1 << 40)
            }))
            .build(),
        good().pax(&[("size", b"minus one")]).file("x", b"").build(),
        good().pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,9,3,5")]).file("x", &[1; 14]).build(),
        cut_after_header(good().raw(&header(|h| h.set_entry_type(EntryType::GNULongName))).build()),
    ];
    let fixture = Fixture::new();
    for (number, layer) in cases.iter().enumerate() {
        let error = refusal(&fixture, with_layer(layer).0);
        let ImageError::Unpack { source: UnpackError::Archive { after, .. }, .. } = &error else {
            panic!("{number}: {error:?}")
        };
        assert_eq!(after, "before", "{number}");
    }
}

/// A terabyte of zeros fits into a few hundred bytes of the one, a few megabytes of the other.
#[test]
fn bombs_are_refused_before_they_go_off() {
    let fixture = Fixture::new();
    let zeros = header(|h| {
        h.set_path("zeros").unwrap();
        h.set_size(1 << 40);
    });
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::Write::write_all(&mut bomb, &zeros).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 64 << 20), &mut bomb).unwrap();
    let bomb = bomb.finish().unwrap();
    let mut layout = Layout::new();
    let image = layout.image(&[&zeros], |_| bomb.clone());
    layout.add(image, None);
    let error = refusal(&fixture, layout.tar());
    assert!(types::error::chain(&error).contains("unpacks to more than 200 times"), "{error:?}");
}

#[test]
fn archives_that_lie_are_refused() {
    let fixture = Fixture::new();
    let good = layout_of(None);
    let blobs = |layout: &Layout| {
        let directory = layout.directory.path().join("blobs/sha256");
        let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths
    };
    // Each blob damaged, then missing.
    for number in 0..blobs(&good).len() {
        let layout = layout_of(None);
        let path = &blobs(&layout)[number];
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, &bytes).unwrap();
        assert!(matches!(refusal(&fixture, layout.tar()), ImageError::Corrupt { .. }), "{number}");
        std::fs::remove_file(path).unwrap();
        let error = refusal(&fixture, layout.tar());
        assert!(matches!(error, ImageError::Corrupt { .. } | ImageError::Unsupported { .. }), "{error:?}");
    }
    let mut lying = Layout::new();
    let mut image = lying.image(&[&Layer::new().build()], gzip);
    image["digest"] = json!(digest(b"another"));
    lying.add(image, None);
    assert!(matches!(refusal(&fixture, lying.tar()), ImageError::Corrupt { .. }));
    let mut misnamed = layout_of(None);
    let descriptor = misnamed.manifests[0].clone();
    misnamed.add(descriptor, Some(("io.containerd.image.name", "example.com/UPPER:x")));
    assert!(matches!(refusal(&fixture, misnamed.tar()), ImageError::Reference { .. }));
}

#[test]
fn docker_archives_that_lie_are_refused() {
    let layer = Layer::new().file("a", b"a").build();
    let config = config(&[&layer], "docker");
    let manifest = |config: &str, layers: &[&str]| {
        json!([{"Config": config, "RepoTags": ["a:1"], "Layers": layers}]).to_string().into_bytes()
    };
    let build = |manifest: &[u8]| {
        Layer::new().file("c.json", &config).file("l.tar", &layer).file("manifest.json", manifest)
    };
    let good = build(&manifest("c.json", &["l.tar"])).build();
    assert_eq!(Fixture::new().load(good).unwrap()[0].0.0.hex(), hex(&digest(&config)));
    let cases = [
        build(&manifest("c.json", &["../l.tar"])),
        build(&manifest("c.json", &["/etc/passwd"])),
        build(&manifest("../../c.json", &["l.tar"])),
        build(&manifest("c.json", &["missing.tar"])),
        build(&manifest("c.json", &[])),
        build(&manifest("c.json", &["l.tar", "l.tar"])),
        build(&manifest("c.json", &["c.json"])),
        build(&manifest("l.tar", &["l.tar"])),
        build(b"{}"),
        build(b"[]"),
        build(&manifest("c.json", &["out.tar"])).symlink("out.tar", "../../../../etc/passwd"),
        build(&manifest("c.json", &["out.tar"])).symlink("out.tar", "/etc/passwd"),
        build(&manifest("c.json", &["loop"])).symlink("loop", "loop"),
        build(&manifest("c.json", &["l.tar"])).file("l.tar", b"twice"),
        Layer::new().file("something", b"else"),
    ];
    let fixture = Fixture::new();
    for (number, archive) in cases.into_iter().enumerate() {
        let error = refusal(&fixture, archive.build());
        let expected = matches!(
            error,
            ImageError::Unsupported { .. } | ImageError::Corrupt { .. } | ImageError::Unpack { .. }
        );
        assert!(expected, "{number}: {error:?}");
    }
    for garbage in [&b""[..], b"garbage", &[0; 4096], &gzip(b"garbage"), b"\xfd7zXZ\0\0"] {
        assert!(matches!(refusal(&fixture, garbage.to_vec()), ImageError::Unsupported { .. }), "{garbage:?}");
    }
}
