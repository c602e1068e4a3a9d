use super::*;
use crate::account::{CpuAccount, Limit, MemoryAccount};
use crate::disk::Transfers;
use crate::usage::{Average, Memory, Pressure, Swap};

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn group(dirs: &[&tempfile::TempDir]) -> Group {
    let paths: Vec<PathBuf> = dirs.iter().map(|dir| dir.path().to_owned()).collect();
    Group::open(&paths).unwrap()
}

const STAT: &str = "anon 5000\nfile 9000\ninactive_file 3000\npgfault 70\npgmajfault 7\n";

#[test]
fn a_group_of_the_unified_hierarchy() {
    let psi =
        "some avg10=1.00 avg60=2.00 avg300=3.00 total=4\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
    let dir = directory(&[
        ("cpu.stat", "usage_usec 2500\nuser_usec 2000\n"),
        ("memory.current", "10000\n"),
        ("memory.stat", STAT),
        ("memory.max", "20000\n"),
        ("memory.swap.current", "100\n"),
        ("memory.swap.max", "max\n"),
        ("pids.current", "3\n"),
        ("io.pressure", psi),
    ]);
    let usage = group(&[&dir]).read().unwrap();
    let memory = Memory {
        usage: 10000,
        working_set: 7000,
        anonymous: Some(5000),
        available: Some(13000),
        faults: Some(70),
        major_faults: Some(7),
    };
    let full = Average { total: 1, ..Average::default() };
    let expected = Usage {
        cpu_nanoseconds: Some(2_500_000),
        memory: Some(memory),
        swap: Some(Swap { usage: 100, available: None }),
        tasks: Some(3),
        cpu_pressure: None,
        memory_pressure: None,
        io_pressure: Some(Pressure {
            some: Average { total: 4, last_10: 1.0, last_60: 2.0, last_300: 3.0 },
            full,
        }),
    };
    assert_eq!(usage, expected);
}

#[test]
fn a_group_of_one_hierarchy_per_controller() {
    let cpu = directory(&[("cpuacct.usage", "123\n"), ("cpu.stat", "nr_periods 0\n")]);
    let memory = directory(&[
        ("memory.usage_in_bytes", "10000\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.usage_in_bytes", "10400\n"),
        ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
        (
            "memory.stat",
            "inactive_file 1\nrss 2\ntotal_rss 5000\ntotal_inactive_file 4000\ntotal_pgfault 8\n",
        ),
    ]);
    let pids = directory(&[("pids.current", "2\n")]);
    let unified = directory(&[("cpu.stat", "usage_usec 9\n"), ("cgroup.procs", "")]);
    let usage = group(&[&unified, &cpu, &memory, &pids]).read().unwrap();
    assert_eq!((usage.cpu_nanoseconds, usage.tasks), (Some(123), Some(2)));
    let expected = Memory {
        usage: 10000,
        working_set: 6000,
        anonymous: Some(5000),
        available: None,
        faults: Some(8),
        major_faults: None,
    };
    assert_eq!(usage.memory, Some(expected));
    assert_eq!(usage.swap, Some(Swap { usage: 400, available: None }));
}

#[test]
fn an_account_of_the_unified_hierarchy() {
    let stat = "anon 1\nfile 2\nkernel 3\nfile_mapped 4\ninactive_file 5\nactive_file 6\n";
    let dir = directory(&[
        (
            "cpu.stat",
            "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 7\nnr_throttled 2\nthrottled_usec 3\n",
        ),
        ("memory.current", "10000\n"),
        ("memory.stat", stat),
        ("memory.peak", "12000\n"),
        ("memory.events", "low 0\nhigh 0\nmax 8\noom 1\noom_kill 1\n"),
        ("pids.max", "max\n"),
        ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
    ]);
    let group = group(&[&dir]);
    let account = group.account().unwrap();
    assert_eq!(account.usage, group.read().unwrap());
    let cpu = CpuAccount {
        user_nanoseconds: Some(5000),
        system_nanoseconds: Some(4000),
        periods: Some(7),
        throttled_periods: Some(2),
        throttled_nanoseconds: Some(3000),
    };
    assert_eq!(account.cpu, cpu);
    let memory = MemoryAccount {
        cache: Some(2),
        mapped_files: Some(4),
        active_files: Some(6),
        inactive_files: Some(5),
        kernel: Some(3),
        peak: Some(12000),
        limit_hits: Some(8),
        oom_kills: Some(1),
        own_faults: None,
        own_major_faults: None,
    };
    assert_eq!(account.memory, memory);
    assert_eq!(account.threads, Some(Limit::None));
    assert_eq!(account.disks[0].written, Transfers { bytes: 2, operations: 4 });
}

#[test]
fn what_the_kernel_uses_is_added_up_where_it_does_not_say_the_sum() {
    let stat = "kernel_stack 1\npagetables 2\npercpu 3\nsock 4\nslab 5\n";
    let dir = directory(&[("cpu.stat", "usage_usec 1\n"), ("memory.stat", stat)]);
    assert_eq!(group(&[&dir]).account().unwrap().memory.kernel, Some(15));
}

#[test]
fn an_account_of_one_hierarchy_per_controller() {
    let psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=4\n";
    let unified = directory(&[("cpu.stat", "usage_usec 9\n"), ("cpu.pressure", psi)]);
    let cpu = directory(&[("cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 3\n")]);
    let cpuacct = directory(&[("cpuacct.usage", "123\n"), ("cpuacct.stat", "user 5\nsystem 4\n")]);
    let memory = directory(&[
        ("memory.usage_in_bytes", "10000\n"),
        ("memory.max_usage_in_bytes", "12000\n"),
        ("memory.kmem.usage_in_bytes", "3\n"),
        ("memory.failcnt", "5\n"),
        ("memory.memsw.failcnt", "3\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        ("memory.stat", "cache 0\npgfault 6\ntotal_cache 2\ntotal_pgfault 60\n"),
    ]);
    let pids = directory(&[("pids.current", "2\n"), ("pids.max", "100\n")]);
    let disks = directory(&[
        ("blkio.throttle.io_service_bytes", ""),
        ("blkio.throttle.io_service_bytes_recursive", "8:0 Write 4096\nTotal 4096\n"),
        ("blkio.throttle.io_serviced_recursive", "8:0 Write 1\nTotal 1\n"),
    ]);
    let freezer = directory(&[("freezer.state", "THAWED\n")]);
    let group = group(&[&unified, &freezer, &cpu, &cpuacct, &disks, &memory, &pids]);
    assert_eq!(
        group.directories.len(),
        5,
        "no descriptor is kept for what is rarely asked or counts nothing"
    );
    let account = group.account().unwrap();
    assert_eq!(account.usage, group.read().unwrap());
    assert_eq!(account.usage.cpu_pressure.map(|it| it.some.total), Some(4));
    assert_eq!(account.cpu.throttled_nanoseconds, Some(3));
    assert_eq!(
        account.cpu.periods,
        Some(7),
        "the file of that name without processors' quotas is passed over"
    );
    assert!(account.cpu.user_nanoseconds > account.cpu.system_nanoseconds);
    let found = account.memory;
    assert_eq!((found.cache, found.own_faults, found.limit_hits), (Some(2), Some(6), Some(8)));
    assert_eq!((found.kernel, found.peak, found.oom_kills), (Some(3), Some(12000), Some(1)));
    assert_eq!(account.threads, Some(Limit::At(100)));
    assert_eq!(account.disks[0].written, Transfers { bytes: 4096, operations: 1 });
    assert_eq!(group.more().len(), 1);

    // What the kernel counts of one group alone, of a container that crun has put into a group below.
    let inner = memory.path().join("container/of its own");
    std::fs::create_dir_all(&inner).unwrap();
    std::fs::write(inner.join("memory.oom_control"), "under_oom 0\noom_kill 5\n").unwrap();
    std::fs::write(memory.path().join("container/memory.stat"), "pgfault 10\n").unwrap();
    let account = group.account().unwrap().memory;
    assert_eq!((account.oom_kills, account.own_faults), (Some(6), Some(16)));
}

#[test]
fn processes_of_inner_groups_count_too() {
    let own = std::process::id().to_string();
    let dir = directory(&[("cpu.stat", "usage_usec 1\n"), ("cgroup.procs", &format!("{own}\n"))]);
    let group = group(&[&dir]);
    assert_eq!(group.census().unwrap().processes, 1);
    let inner = dir.path().join("inner/most");
    std::fs::create_dir_all(&inner).unwrap();
    std::fs::write(inner.join("cgroup.procs"), "2147483647\n").unwrap();
    let found = group.census().unwrap();
    assert_eq!(found.processes, 2);
    assert!(found.open.is_some_and(|open| open.descriptors > 2), "{found:?}");
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert!(matches!(group.census(), Err(StatsError::Gone { .. })));
    assert!(matches!(group.account(), Err(StatsError::Gone { .. })));
}

#[test]
fn a_group_that_is_gone_says_so_and_is_not_taken_for_its_successor() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("group");
    let make = || {
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("memory.current"), "1\n").unwrap();
        std::fs::write(path.join("cpu.stat"), "usage_usec 1\n").unwrap();
    };
    make();
    let group = Group::open(std::slice::from_ref(&path)).unwrap();
    assert!(group.read().is_ok());
    std::fs::remove_dir_all(&path).unwrap();
    make();
    assert!(matches!(group.read(), Err(StatsError::Gone { .. })));
    assert!(matches!(group.cpu_nanoseconds(), Err(StatsError::Gone { .. })));
    assert!(matches!(Group::open(&[parent.path().join("never")]), Err(StatsError::Gone { .. })));
}

#[test]
fn this_process_is_in_a_group_that_can_be_read() {
    let memberships = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let directories: Vec<PathBuf> = memberships
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .flat_map(|(controllers, path)| {
            let inside = path.trim_start_matches('/');
            ["", controllers].map(|mount| Path::new("/sys/fs/cgroup").join(mount).join(inside))
        })
        .collect();
    let usage = Group::open(&directories).unwrap().read().unwrap();
    assert!(usage.cpu_nanoseconds.is_some_and(|it| it > 0), "{usage:?}");
}

#[test]
fn a_long_file_is_read_to_its_end() {
    for lines in [0_usize, 500, 819, 820, 1700, 3000] {
        let text: String = (0..lines).map(|line| format!("{line:04}\n")).collect();
        let dir = directory(&[("cpu.stat", "usage_usec 1\n"), ("cgroup.procs", &text)]);
        let opened = Directory::open(dir.path()).unwrap();
        assert_eq!(opened.text_within("cgroup.procs", 1 << 20).unwrap().unwrap(), text, "{lines}");
    }
}

#[test]
fn a_file_is_found_in_a_hierarchy_that_has_nothing_else_of_its_kind() {
    let memory = directory(&[("memory.usage_in_bytes", "10\n"), ("memory.stat", "total_rss 5\n")]);
    let unified = directory(&[("cpu.stat", "usage_usec 9\n"), ("memory.odd", "7\n")]);
    let group = group(&[&memory, &unified]);
    assert_eq!(group.text("memory.odd").unwrap().as_deref(), Some("7\n"));
    assert_eq!(group.text("memory.none").unwrap(), None);
    let kinds: Vec<_> = group.directories.iter().map(|it| it.kinds.as_slice()).collect();
    assert_eq!(kinds, [["memory"], ["cpu"]]);
    let names = ["memory.memsw.limit_in_bytes", "memory.pressure", "cpuacct.usage", "odd"].map(kind);
    assert_eq!(names, ["memory", "pressure", "cpuacct", "odd"]);
}

#[test]
fn files_that_stay_open_tell_what_is_in_them_now() {
    let dir = directory(&[("cpu.stat", "usage_usec 1\n"), ("memory.current", "10\n"), ("memory.stat", STAT)]);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let group = group(&[&dir]).keeping(&Allowance::of(100));
    let found = || group.read().unwrap();
    assert_eq!(found().memory.unwrap().working_set, 0);
    write("memory.current", "9876543210\n");
    assert_eq!(found().memory.unwrap().usage, 9_876_543_210);
    write("memory.current", "4000\n");
    // Longer than what is read at a time.
    write("memory.stat", &format!("{}{STAT}", "other 1\n".repeat(PAGE / 5)));
    assert_eq!(found().memory.unwrap().working_set, 1000);
    write("memory.stat", "inactive_file 1000\n");
    assert_eq!(found().memory.unwrap().working_set, 3000);
    write("cpu.stat", "usage_usec 20\n");
    assert_eq!(group.cpu_nanoseconds().unwrap(), Some(20_000));
}

#[test]
fn no_more_files_stay_open_than_allowed() {
    let files = [("cpu.stat", "usage_usec 1\n"), ("memory.current", "10\n"), ("pids.current", "1\n")];
    let dir = directory(&files);
    let allowance = Allowance::of(4);
    let open = || {
        let group = group(&[&dir]).keeping(&allowance);
        group.read().unwrap();
        group
    };
    let open_files = || {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.filter(|target| target.parent() == Some(dir.path())).count()
    };
    let groups = [open(), open()];
    assert_eq!(open_files(), 4);
    groups.iter().for_each(|group| assert_eq!(group.read().unwrap(), groups[0].read().unwrap()));
    drop(groups);
    assert_eq!(open_files(), 0);
    let again = open();
    assert_eq!(open_files(), 3);
    drop(again);
}
