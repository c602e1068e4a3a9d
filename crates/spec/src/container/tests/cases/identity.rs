//! Who runs, and what is run.

use cri_api::v1;

use crate::Rlimit;
use crate::container::tests::table::Case;
use crate::container::tests::words;

fn number(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn variable(key: &str, value: &str) -> v1::KeyValue {
    v1::KeyValue { key: key.into(), value: value.into() }
}

pub(super) const CASES: &[Case] = &[
    ("a user by number that the image does not know", |it| it.security().run_as_user = number(1000), "
        process.user.uid = 1000
    "),
    ("a user by number that the image knows", |it| it.security().run_as_user = number(33), "
        process.user.uid = 33
        process.user.gid = 34
        process.user.additionalGids = [34,4,8]
    "),
    ("a user by name", |it| it.security().run_as_username = "web".into(), "
        process.user.uid = 33
        process.user.gid = 34
        process.user.additionalGids = [34,4,8]
    "),
    ("user, group and further groups", |it| {
        it.security().run_as_user = number(1000);
        it.security().run_as_group = number(2000);
        it.security().supplemental_groups = vec![3000, 2000, 3000];
    }, "
        process.user.uid = 1000
        process.user.gid = 2000
        process.user.additionalGids = [2000,3000]
    "),
    ("fsGroup, which kubelet sends as a further group", |it| {
        it.security().run_as_user = number(33);
        it.security().supplemental_groups = vec![1234];
    }, "
        process.user.uid = 33
        process.user.gid = 34
        process.user.additionalGids = [34,4,8,1234]
    "),
    ("groups of the image do not count under Strict", |it| {
        it.security().run_as_user = number(33);
        it.security().supplemental_groups = vec![1234];
        it.security().supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
    }, "
        process.user.uid = 33
        process.user.gid = 34
        process.user.additionalGids = [34,1234]
    "),
    ("the image's user and group", |it| it.image_config(|image| {
        image.set_user(Some("web:mail".into()));
    }), "
        process.user.uid = 33
        process.user.gid = 8
        process.user.additionalGids = [8,4]
    "),
    ("the request's user instead of the image's", |it| {
        it.image_config(|image| { image.set_user(Some("web:mail".into())); });
        it.security().run_as_user = number(0);
    }, ""),
    ("a command, which also takes the place of the image's cmd", |it| it.container.command = words(&["/bin/app"]), "
        process.args = [\"/bin/app\"]
    "),
    ("args alone", |it| it.container.args = words(&["-v"]), "
        process.args = [\"/entry\",\"-v\"]
    "),
    ("a working directory, made clean", |it| it.container.working_dir = "/a/../b/".into(), "
        process.cwd = /b
    "),
    ("no working directory at all", |it| it.image_config(|image| { image.set_working_dir(None); }), "
        process.cwd = /
    "),
    ("variables replace the image's where they stand", |it| {
        it.container.envs = vec![variable("MODE", "mine"), variable("NEW", "a=b"), variable("NEW", "last")];
    }, "
        process.env = [\"PATH=/image/bin\",\"MODE=mine\",\"HOSTNAME=web-0\",\"NEW=last\"]
    "),
    ("an image without variables", |it| it.image_config(|image| { image.set_env(None); }), "
        process.env = [\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\",\"HOSTNAME=web-0\"]
    "),
    ("a terminal", |it| it.container.tty = true, "
        process.terminal = true
        process.env = [\"PATH=/image/bin\",\"TERM=xterm\",\"MODE=image\",\"HOSTNAME=web-0\"]
    "),
    ("standard input, labels, a log and a stop signal are not the OCI runtime's", |it| {
        it.container.stdin = true;
        it.container.stdin_once = true;
        it.container.log_path = "other.log".into();
        it.container.labels.insert("a".into(), "b".into());
        it.container.stop_signal = v1::Signal::Sigusr1.into();
        it.image_config(|image| { image.set_stop_signal(Some("SIGQUIT".into())); });
    }, ""),
    ("a mask for files that the handler lets pods choose", |it| {
        it.facts.pod_annotations = words(&["umask.crio.io"]);
        it.pod.annotations.insert("umask.crio.io".into(), "0027".into());
    }, "
        process.user.umask = 23
        annotations.umask.crio.io = 0027
    "),
    ("the same mask where no handler lets it pass", |it| {
        it.pod.annotations.insert("umask.crio.io".into(), "0027".into());
    }, ""),
    ("limits of processes that the node sets", |it| {
        it.facts.rlimits = vec![
            Rlimit { name: "nofile", soft: 1024, hard: 4096 },
            Rlimit { name: "core", soft: 0, hard: u64::MAX },
        ];
    }, "
        rlimit RLIMIT_NOFILE = 1024:4096
        rlimit RLIMIT_CORE = 0:18446744073709551615
    "),
];
