//! Who a container's process runs as.
//!
//! A pure lookup over the text of the image's own `/etc/passwd` and `/etc/group`. The caller reads both files beneath
//! the container's root; a missing file is `None`. Promises: a name that cannot be found is an error naming it; a number
//! needs no entry (its group is then 0); a line that is no entry is passed over, however it is malformed; the primary group is
//! always the first of the additional groups, as OCI runtimes set the whole list with one system call. The files come from
//! strangers, so the time taken grows with their length and no faster.

use std::collections::HashSet;

use crate::error::SpecError;

/// The kernel gives a process no more groups than this.
const MAX_GROUPS: usize = 65_536;

/// The user a process is to run as, before the lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChoice {
    /// As the image config says it: empty, `user` or `user:group`, each a name or a number.
    Image(String),
    /// A user id.
    Uid(u32),
    /// A user name; a text of digits is taken as an id.
    Name(String),
}

/// Whether memberships that the image's group file states count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupsPolicy {
    /// They are added to the requested groups.
    #[default]
    Merge,
    /// Only the requested groups count.
    Strict,
}

/// All that a request and an image say about identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRequest {
    /// The user.
    pub user: UserChoice,
    /// The primary group, when the request sets it.
    pub group: Option<u32>,
    /// Further groups.
    pub supplemental: Vec<u32>,
    /// Whether the image's own memberships count.
    pub policy: GroupsPolicy,
}

impl Default for IdentityRequest {
    fn default() -> Self {
        let user = UserChoice::Image(String::new());
        Self { user, group: None, supplemental: Vec::new(), policy: GroupsPolicy::Merge }
    }
}

/// A process's user and groups, as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All group ids, the primary one first, each once.
    pub additional_gids: Vec<u32>,
    /// Home directory of the passwd entry.
    pub home: Option<String>,
    /// Name of the passwd entry.
    pub username: Option<String>,
}

/// Looks an identity up in the image's own files.
///
/// # Errors
/// [`SpecError::UnknownUser`] or [`SpecError::UnknownGroup`] for a name without an entry, [`SpecError::Invalid`] for more groups
/// than a process can have.
pub fn resolve(
    request: &IdentityRequest,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<Identity, SpecError> {
    let passwd = text(passwd);
    let groups = text(group);
    let (user, image_group) = match &request.user {
        UserChoice::Image(text) => split_user(text),
        UserChoice::Uid(uid) => (User::Id(*uid), None),
        UserChoice::Name(name) => (User::of(name), None),
    };
    let entry = find_user(&passwd, &user);
    let uid = match (&entry, user) {
        (Some(entry), _) => entry.uid,
        (None, User::Id(uid)) => uid,
        (None, User::Name(name)) => return Err(SpecError::UnknownUser(name.to_owned())),
    };
    let gid = match (request.group, image_group) {
        (Some(gid), _) => gid,
        (None, Some(name)) => find_group(&groups, name)?,
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut additional_gids = vec![gid];
    if let (GroupsPolicy::Merge, Some(entry)) = (request.policy, &entry) {
        additional_gids.extend(memberships(&groups, entry.name));
    }
    additional_gids.extend(&request.supplemental);
    let additional_gids = each_once(additional_gids);
    if additional_gids.len() > MAX_GROUPS {
        let reason = "a process can have 65536 groups at most";
        return Err(SpecError::invalid("supplemental groups", additional_gids.len().to_string(), reason));
    }
    Ok(Identity {
        uid,
        gid,
        additional_gids,
        home: entry.as_ref().map(|entry| entry.home.to_owned()),
        username: entry.map(|entry| entry.name.to_owned()),
    })
}

enum User<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> User<'a> {
    fn of(text: &'a str) -> Self {
        number(text).map_or(Self::Name(text), Self::Id)
    }
}

/// A text that is an id; the highest number means "no id" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

/// `user[:group]`; an absent user is root.
fn split_user(text: &str) -> (User<'_>, Option<&str>) {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let user = if user.is_empty() { User::Id(0) } else { User::of(user) };
    (user, Some(group).filter(|group| !group.is_empty()))
}

fn passwd_entry(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    Some(Passwd { name, uid, gid, home: fields.nth(1).unwrap_or("/") })
}

fn find_user<'a>(passwd: &'a str, user: &User<'_>) -> Option<Passwd<'a>> {
    passwd.lines().filter_map(passwd_entry).find(|entry| match user {
        User::Id(uid) => entry.uid == *uid,
        User::Name(name) => entry.name == *name,
    })
}

/// The fields of a group line: name, id, members.
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let gid = number(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or("")))
}

fn find_group(groups: &str, wanted: &str) -> Result<u32, SpecError> {
    if let Some(gid) = number(wanted) {
        return Ok(gid);
    }
    let mut entries = groups.lines().filter_map(group_entry);
    let found = entries.find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
    found.ok_or_else(|| SpecError::UnknownGroup(wanted.to_owned()))
}

fn memberships<'a>(groups: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    let is_member = move |members: &str| members.split(',').any(|member| member.trim() == user);
    groups
        .lines()
        .filter_map(group_entry)
        .filter(move |(_, _, members)| is_member(members))
        .map(|(_, gid, _)| gid)
}

fn each_once(mut ids: Vec<u32>) -> Vec<u32> {
    let mut seen = HashSet::with_capacity(ids.len());
    ids.retain(|id| seen.insert(*id));
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        alice:x:1000:1001:Alice:/home/alice:/bin/sh\n\
        \xff:x:7:7::/:\n\
        nohome:x:1002:1002\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,alice\nalice:x:1001:\nextra:x:50000:alice, bob\n:x\n";

    fn image(user: &str) -> IdentityRequest {
        IdentityRequest { user: UserChoice::Image(user.into()), ..IdentityRequest::default() }
    }

    fn name(user: &str) -> IdentityRequest {
        IdentityRequest { user: UserChoice::Name(user.into()), ..IdentityRequest::default() }
    }

    fn uid(uid: u32) -> IdentityRequest {
        IdentityRequest { user: UserChoice::Uid(uid), ..IdentityRequest::default() }
    }

    #[test]
    fn identities_follow_the_image() {
        let strict = IdentityRequest { policy: GroupsPolicy::Strict, supplemental: vec![60000], ..uid(1000) };
        let merge = IdentityRequest { supplemental: vec![60000, 10], ..uid(1000) };
        let grouped = IdentityRequest { group: Some(5), ..name("alice") };
        let table: Vec<(&str, IdentityRequest, u32, u32, Vec<u32>)> = vec![
            ("image says nothing: root, a member of wheel here", image(""), 0, 0, vec![0, 10]),
            ("image user by name", image("alice"), 1000, 1001, vec![1001, 10, 50000]),
            ("image user by number", image("1000"), 1000, 1001, vec![1001, 10, 50000]),
            ("image user and group by name", image("alice:wheel"), 1000, 10, vec![10, 50000]),
            ("image user and group by number", image("2000:3000"), 2000, 3000, vec![3000]),
            ("image group only", image(":0"), 0, 0, vec![0, 10]),
            ("number without entry", uid(4242), 4242, 0, vec![0]),
            ("short entry", name("nohome"), 1002, 1002, vec![1002]),
            ("name of digits", name("4242"), 4242, 0, vec![0]),
            ("request's group wins", grouped, 1000, 5, vec![5, 10, 50000]),
            ("merge", merge, 1000, 1001, vec![1001, 10, 50000, 60000]),
            ("strict", strict, 1000, 1001, vec![1001, 60000]),
            ("root's memberships", uid(0), 0, 0, vec![0, 10]),
        ];
        for (case, request, uid, gid, groups) in table {
            let found = resolve(&request, Some(PASSWD), Some(GROUP)).unwrap();
            assert_eq!((found.uid, found.gid, found.additional_gids), (uid, gid, groups), "{case}");
        }
    }

    #[test]
    fn unknown_names_are_errors_that_name_them() {
        let error = resolve(&name("mallory"), Some(PASSWD), Some(GROUP)).unwrap_err();
        assert!(matches!(&error, SpecError::UnknownUser(name) if name == "mallory"), "{error}");
        let error = resolve(&image("alice:nogroup"), Some(PASSWD), Some(GROUP)).unwrap_err();
        assert!(matches!(&error, SpecError::UnknownGroup(name) if name == "nogroup"), "{error}");
        assert!(resolve(&name("alice"), None, None).is_err());
    }

    #[test]
    fn an_image_without_files_runs_numbers() {
        let found = resolve(&uid(65535), None, None).unwrap();
        assert_eq!(found, Identity { uid: 65535, additional_gids: vec![0], ..Identity::default() });
        let alice = resolve(&name("alice"), Some(PASSWD), None).unwrap();
        assert_eq!((alice.home.as_deref(), alice.username.as_deref()), (Some("/home/alice"), Some("alice")));
    }

    #[test]
    fn malformed_files_are_read_as_far_as_they_are_sound() {
        let passwd: &[u8] = b"\0\0\n::::\nweb:x:-1:5\nweb:x:4294967295:5\nweb:x:1e3:5\n+::::::\n web:x:33:33:::/bin/sh\r\n:x:0:0\nend";
        let group: &[u8] = b"a:x:7:web\r\nb:x:oops:web\nc:x:-8:web\nd:x:9: web ,x\n";
        let found = resolve(&name("web"), Some(passwd), Some(group)).unwrap();
        assert_eq!((found.uid, found.gid, found.additional_gids), (33, 33, vec![33, 7, 9]));
        assert!(resolve(&name("-1"), Some(passwd), None).is_err());
        assert!(resolve(&name("4294967295"), Some(passwd), None).is_err(), "it is no id, and nobody's name");
    }

    #[test]
    fn a_file_of_hundreds_of_thousands_of_groups_is_refused_soon() {
        let lines: String = (0..400_000).map(|gid| format!("g:x:{gid}:alice\n")).collect();
        let error = resolve(&name("alice"), Some(PASSWD), Some(lines.as_bytes())).unwrap_err();
        assert!(error.to_string().contains("65536 groups"), "{error}");
        let strict = IdentityRequest { policy: GroupsPolicy::Strict, ..name("alice") };
        assert_eq!(resolve(&strict, Some(PASSWD), Some(lines.as_bytes())).unwrap().additional_gids, [1001]);
    }
}
