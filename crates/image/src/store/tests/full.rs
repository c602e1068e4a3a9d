//! A file system without a free block.

use super::file_system::{mount, new_file_system, unmount};
use super::*;

/// Takes every block that is left.
fn fill(directory: &Path) -> PathBuf {
    use std::io::Write;

    let path = directory.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    drop(file.sync_all());
    path
}

fn free(directory: &Path) -> u64 {
    sys::disk::usage(directory).unwrap().available_bytes
}

#[test]
fn what_frees_space_needs_none() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    sys::mount::on_private_thread(|| {
        sys::mount::tmpfs(directory, 64 << 20, 0o700).unwrap();
        let (disk, mounted) = (directory.join("disk"), directory.join("mounted"));
        let content = new_file_system(&disk, 16 << 20);
        fs::write(&disk, content).unwrap();
        fs::create_dir(&mounted).unwrap();
        mount(&disk, &mounted);
        work_without_space(&mounted);
        unmount(&mounted);
    })
    .unwrap();
}

fn work_without_space(mounted: &Path) {
    let root = mounted.join("images");
    let store = Store::open(&root, Vec::new()).unwrap();
    let empty = (tree_of(&root), store.usage().used_bytes);
    let used = store_image(&store, "used:1", &["base", "app"]);
    store_image(&store, "unused:1", &["base", "data"]);
    store.lease("runs", &used).unwrap();
    let filler = fill(mounted);
    assert_eq!(free(mounted), 0);
    let before = tree_of(&root);

    assert_eq!(store.ingest().unwrap_err().kind(), ErrorKind::ResourceExhausted);
    assert_eq!(store.lease("more", &used).unwrap_err().kind(), ErrorKind::ResourceExhausted);
    let second = Reference::parse("second:1").unwrap();
    let unnamed = store.add_name(&used, &second, &digest_of(b"m"), &|| Ok(())).unwrap_err();
    assert_eq!(unnamed.kind(), ErrorKind::ResourceExhausted, "{unnamed}");
    assert_eq!((tree_of(&root), store.index().images().len()), (before, 2), "what failed left nothing");

    // A start works, too.
    drop(store);
    let store = Store::open(&root, Vec::new()).unwrap();
    store.remove("unused:1").unwrap();
    assert!(free(mounted) > 0);
    fill(mounted);
    store.remove(used.0.as_str()).unwrap();
    assert!(store.pin_layer(&diff_id("base")).is_some(), "leased");
    store.release("runs").unwrap();
    assert_eq!((tree_of(&root), store.usage().used_bytes), empty);
    fs::remove_file(filler).unwrap();
    store_image(&store, "used:1", &["base", "app"]);
}
