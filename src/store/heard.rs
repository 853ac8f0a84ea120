//! Which kinds of keyspace events there are, and which of them have been heard. Pure.
//!
//! Redis can announce some kinds of changes and not others. Where it does not say which (CONFIG is forbidden or renamed), an
//! event proves that its own class is on, and nothing about any other.

use std::fmt;

use super::{Pattern, Role};

/// A class of events that `notify-keyspace-events` switches on with a letter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `l`: edits of frontends.
    List,
    /// `g`: deletions, renames, copies and times to live, of any type.
    Generic,
    /// `s`: dead marks.
    Set,
    /// `h`: certificates.
    Hash,
    /// `x`: keys whose time is over, on the server that decides so.
    Expired,
}

impl Class {
    /// The class of an event, by its name; `None` for one that proves none of these.
    pub fn of(event: &str) -> Option<Self> {
        Some(match event {
            "lpush" | "rpush" | "lpop" | "rpop" | "linsert" | "lset" | "lrem" | "ltrim" | "sortstore" => Self::List,
            "del" | "expire" | "persist" | "rename_from" | "rename_to" | "move_from" | "move_to" | "copy_to"
            | "restore" => Self::Generic,
            "sadd" | "srem" | "spop" | "sinterstore" | "sunionstore" | "sdiffstore" => Self::Set,
            "hset" | "hdel" | "hincrby" | "hincrbyfloat" => Self::Hash,
            "expired" => Self::Expired,
            _ => return None,
        })
    }

    /// The classes without which an edit may go unannounced, for whoever follows these keys on a server of this role. A string
    /// or a sorted set in the place of a list or of a certificate changes no route, and Redis evicts only where it is told to;
    /// so neither is waited for.
    pub fn needed(patterns: &[Pattern], role: Role) -> Vec<Self> {
        let mut needed = vec![Self::List, Self::Generic, Self::Set];
        if patterns.contains(&Pattern::Certificates) {
            needed.push(Self::Hash);
        }
        // A replica is told by its master to delete what has expired, and announces just that.
        if role == Role::Master {
            needed.push(Self::Expired);
        }
        needed
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "list",
            Self::Generic => "generic",
            Self::Set => "set",
            Self::Hash => "hash",
            Self::Expired => "expired",
        })
    }
}

/// The classes that are needed, and those of them of which no event has been heard.
#[derive(Clone, Debug)]
pub struct Hearing {
    needed: Vec<Class>,
    missing: Vec<Class>,
}

impl Hearing {
    /// Before the first event.
    pub fn new(needed: Vec<Class>) -> Self {
        Self { missing: needed.clone(), needed }
    }

    /// Notes an event of this class.
    pub fn hear(&mut self, class: Class) {
        self.missing.retain(|missing| *missing != class);
    }

    /// The classes of which nothing has been heard.
    pub fn missing(&self) -> &[Class] {
        &self.missing
    }

    /// Forgets what was heard.
    pub fn begin_anew(&mut self) {
        self.missing.clone_from(&self.needed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: Role = Role::Replica { link_up: true, copying: false };

    #[test]
    fn the_name_of_an_event_tells_its_class() {
        for (event, class) in [
            ("rpush", Some(Class::List)),
            ("ltrim", Some(Class::List)),
            ("del", Some(Class::Generic)),
            ("rename_to", Some(Class::Generic)),
            ("sadd", Some(Class::Set)),
            ("hset", Some(Class::Hash)),
            ("expired", Some(Class::Expired)),
            ("set", None),
            ("zadd", None),
            ("evicted", None),
            ("new", None),
            ("", None),
        ] {
            assert_eq!(Class::of(event), class, "{event}");
        }
    }

    #[test]
    fn what_is_needed_depends_on_what_is_followed_and_where() {
        use Class::{Expired, Generic, Hash, List, Set};
        let routes = [Pattern::Frontends, Pattern::DeadSets];
        let all = [Pattern::Frontends, Pattern::DeadSets, Pattern::Certificates];
        assert_eq!(Class::needed(&routes, REPLICA), [List, Generic, Set]);
        assert_eq!(Class::needed(&all, REPLICA), [List, Generic, Set, Hash]);
        assert_eq!(Class::needed(&routes, Role::Master), [List, Generic, Set, Expired]);
        assert_eq!(Class::needed(&all, Role::Master), [List, Generic, Set, Hash, Expired]);
    }

    #[test]
    fn one_event_proves_its_own_class_alone() {
        let mut hearing = Hearing::new(vec![Class::List, Class::Set]);
        hearing.hear(Class::List);
        hearing.hear(Class::List);
        hearing.hear(Class::Expired);
        assert_eq!(hearing.missing(), [Class::Set]);
        hearing.hear(Class::Set);
        assert_eq!(hearing.missing(), []);
        hearing.begin_anew();
        assert_eq!(hearing.missing(), [Class::List, Class::Set]);
    }
}
