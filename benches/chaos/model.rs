//! What Redis should hold, and random edits of it.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    backends::Backends,
    dice::Dice,
    redis::{Command, command},
};

/// The lists of every host, as the edits so far should have left them.
pub struct Model {
    backends: Arc<Backends>,
    steady: Vec<Vec<String>>,
    edited: Vec<Entry>,
    /// Makes identifiers differ.
    edits: u64,
}

/// An edited host.
#[derive(Clone, Default)]
struct Entry {
    /// Empty for no key.
    list: Vec<String>,
    /// The key may still be there, with a time to live. What is written next must replace it.
    expires: bool,
}

/// One change of the model and the commands that make it in Redis.
pub struct Edit {
    /// What to send, in one pipeline.
    pub commands: Vec<Command>,
    /// The edited hosts that are touched.
    pub hosts: Vec<usize>,
}

/// Whom a host's requests must reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nobody: there is no route.
    NoRoute,
    /// Nobody: there are only backends that refuse.
    Unavailable,
    /// All of these, in turns.
    Answers(BTreeSet<String>),
}

impl Model {
    /// A model with all never-edited hosts and no edited one yet.
    pub fn new(backends: &Arc<Backends>, hosts: usize) -> Self {
        let live = &backends.live;
        let steady = |number: usize| {
            vec!["steady".to_owned(), live[number % live.len()].clone(), live[(number + 1) % live.len()].clone()]
        };
        Self {
            backends: Arc::clone(backends),
            steady: (0..STEADY).map(steady).collect(),
            edited: vec![Entry::default(); hosts],
            edits: 0,
        }
    }

    /// Never-edited hosts and whom their requests must reach.
    pub fn steady(&self) -> Vec<(String, Expected)> {
        self.steady.iter().enumerate().map(|(number, list)| (steady_host(number), self.expected_of(list))).collect()
    }

    /// Edited hosts and whom their requests must reach.
    pub fn edited(&self) -> Vec<(String, Expected)> {
        let expected = |(number, entry): (usize, &Entry)| (edited_host(number), self.expected_of(&entry.list));
        self.edited.iter().enumerate().map(expected).collect()
    }

    /// How many hosts have a route.
    pub fn frontends(&self) -> usize {
        STEADY + FILLERS + self.edited.iter().filter(|entry| entry.list.len() > 1).count()
    }

    /// Keys and the lists that they should hold; an empty one for a key that should not exist.
    pub fn lists(&self) -> impl Iterator<Item = (String, &[String])> {
        let steady = self.steady.iter().enumerate().map(|(number, list)| (key(&steady_host(number)), list.as_slice()));
        let edited = self.edited.iter().enumerate();
        steady.chain(edited.map(|(number, entry)| (key(&edited_host(number)), entry.list.as_slice())))
    }

    /// Commands with numbers for replies, and the numbers, about what else should be so.
    pub fn counts(&self) -> Vec<(Command, i64)> {
        let exist = |names: Vec<String>| [vec!["EXISTS".to_owned()], names].concat();
        let marked = (0..self.edited.len()).filter(|&number| !may_refuse(number));
        let marks = exist(marked.map(|number| dead_key(&edited_host(number))).collect());
        let numbers: Vec<usize> = (0..FILLERS).collect();
        let fillers = numbers.chunks(1_000).map(|page| {
            let names = page.iter().map(|&number| key(&filler_host(number)));
            (exist(names.collect()), i64::try_from(page.len()).expect("a page is short"))
        });
        std::iter::once((marks, 0)).chain(fillers).collect()
    }

    /// The never-edited hosts in one transaction, with these commands before them.
    pub fn write_steady(&self, before: &[Command]) -> Vec<Command> {
        let steady = self.steady.iter().enumerate();
        let lists = steady.flat_map(|(number, list)| replace(&key(&steady_host(number)), list));
        transaction(before.iter().cloned().chain(lists))
    }

    /// Everything else, whatever is there.
    pub fn write_rest(&self) -> Vec<Command> {
        let edited = (0..self.edited.len()).flat_map(|number| self.rewrite(number));
        let filler =
            |number| replace(&key(&filler_host(number)), &["filler".to_owned(), self.backends.live[0].clone()]);
        edited.chain((0..FILLERS).flat_map(filler)).collect()
    }

    /// One edited host, whatever is there.
    pub fn rewrite(&self, number: usize) -> Vec<Command> {
        transaction(replace(&key(&edited_host(number)), &self.edited[number].list))
    }

    /// The next random edit. The model is changed at once.
    pub fn edit(&mut self, dice: &mut Dice) -> Edit {
        self.edits += 1;
        let number = dice.below(self.edited.len());
        let kind = dice.below(100);
        let host = edited_host(number);
        let list_key = key(&host);
        let url = self.url(number, dice);
        let Entry { list, expires } = &mut self.edited[number];
        let needs_another = *expires || list.is_empty() || list.len() > LONGEST;
        let commands = match kind {
            90.. => junk(dice),
            80.. if !may_refuse(number) => {
                let index = dice.below(4).to_string();
                let dead = dead_key(&host);
                if dice.one_in(3) {
                    vec![command(&["SREM", &dead, &index])]
                } else {
                    let seconds = (1 + dice.below(2)).to_string();
                    transaction([command(&["SADD", &dead, &index]), command(&["EXPIRE", &dead, &seconds])])
                }
            }
            _ if needs_another => self.replace(number, dice),
            0..25 => {
                list.push(url.clone());
                vec![command(&["RPUSH", &list_key, &url])]
            }
            25..40 => {
                let url = list.get(1).cloned().unwrap_or(url);
                // An identifier is never equal to a URL.
                list.retain(|element| *element != url);
                vec![command(&["LREM", &list_key, "0", &url])]
            }
            40..50 if list.len() > 1 => {
                let index = 1 + dice.below(list.len() - 1);
                list[index].clone_from(&url);
                vec![command(&["LSET", &list_key, &index.to_string(), &url])]
            }
            50..56 => {
                list.clear();
                vec![command(&["DEL", &list_key])]
            }
            56..62 => {
                let target = (number + GROUP * (1 + dice.below(3))) % (self.edited.len() / GROUP * GROUP);
                if target == number || self.edited[target].expires {
                    self.replace(number, dice)
                } else {
                    self.edited[target].list = std::mem::take(&mut self.edited[number].list);
                    let commands = vec![command(&["RENAME", &list_key, &key(&edited_host(target))])];
                    return Edit { commands, hosts: vec![number, target] };
                }
            }
            62..76 if dies(number) => {
                self.edited[number] = Entry { list: Vec::new(), expires: true };
                vec![command(&["EXPIRE", &list_key, &(1 + dice.below(3)).to_string()])]
            }
            62..66 => {
                *list = vec![format!("alone-{}", self.edits)];
                transaction(replace(&list_key, list))
            }
            _ => self.replace(number, dice),
        };
        Edit { commands, hosts: vec![number] }
    }

    /// Another list for a host.
    fn replace(&mut self, number: usize, dice: &mut Dice) -> Vec<Command> {
        let mut list = vec![format!("id-{}", self.edits)];
        list.extend((0..=dice.below(4)).map(|_| self.url(number, dice)));
        self.edited[number] = Entry { list, expires: false };
        self.rewrite(number)
    }

    fn url(&self, number: usize, dice: &mut Dice) -> String {
        if may_refuse(number) && dice.one_in(3) {
            return self.backends.refusing.clone();
        }
        dice.pick(&self.backends.live).clone()
    }

    fn expected_of(&self, list: &[String]) -> Expected {
        let Some((_, urls)) = list.split_first().filter(|(_, urls)| !urls.is_empty()) else { return Expected::NoRoute };
        let names: BTreeSet<String> =
            urls.iter().filter_map(|url| self.backends.name(url)).map(str::to_owned).collect();
        if names.is_empty() { Expected::Unavailable } else { Expected::Answers(names) }
    }
}

/// Values that are no routes, under hosts that nobody asks for.
fn junk(dice: &mut Dice) -> Vec<Command> {
    let host = format!("junk-{}.example.com", dice.below(8));
    let (list, dead) = (key(&host), dead_key(&host));
    let value =
        *dice.pick(&["", "http://", "http://[::", "ftp://x", "\u{0}\u{1}\u{fffd}", "http://a b:99999", "https://:80"]);
    let write = match dice.below(6) {
        0 => command(&["SET", &list, value]),
        1 => command(&["HSET", &list, "field", value]),
        2 => command(&["RPUSH", &list, value, value, value]),
        3 => command(&["SADD", &dead, value, "-1", "99999999999999999999"]),
        4 => command(&["SET", &dead, value]),
        _ => command(&["PUBLISH", "dead", value]),
    };
    vec![command(&["DEL", &list, &dead]), write]
}

fn transaction(commands: impl IntoIterator<Item = Command>) -> Vec<Command> {
    let mut all = vec![command(&["MULTI"])];
    all.extend(commands);
    all.push(command(&["EXEC"]));
    all
}

fn replace(key: &str, list: &[String]) -> Vec<Command> {
    let mut commands = vec![command(&["DEL", key])];
    if !list.is_empty() {
        let words = [vec!["RPUSH".to_owned(), key.to_owned()], list.to_vec()];
        commands.push(words.concat());
    }
    commands
}

/// Whether this host's list may hold the backend that refuses. The proxy itself keeps such a host's dead set going, so no
/// edit adds to that; RENAME stays among hosts of one kind.
fn may_refuse(number: usize) -> bool {
    number.is_multiple_of(GROUP)
}

/// Whether EXPIRE may be put on this host.
fn dies(number: usize) -> bool {
    number % GROUP == 1
}

/// Whether a text names a host that EXPIRE may be put on.
pub fn may_expire(text: &str) -> bool {
    let number = || text.split_once("edited-")?.1.split_once('.')?.0.parse().ok();
    number().is_some_and(dies)
}

fn steady_host(number: usize) -> String {
    format!("steady-{number}.example.com")
}

fn edited_host(number: usize) -> String {
    format!("edited-{number}.example.com")
}

fn filler_host(number: usize) -> String {
    format!("filler-{number}.example.com")
}

fn key(host: &str) -> String {
    format!("frontend:{host}")
}

fn dead_key(host: &str) -> String {
    format!("dead:{host}")
}

/// Hosts that are never edited.
const STEADY: usize = 50;

/// Hosts that are there for the time that it takes to load them.
const FILLERS: usize = 20_000;

/// One host in so many may have a backend that refuses, and another one may expire.
const GROUP: usize = 8;

/// A longer list is replaced.
const LONGEST: usize = 6;
