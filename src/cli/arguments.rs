//! The words of a command line, read as Go's flag package reads them, in the one form that the parser is given.
//!
//! The original's users write `-listen :80`, `--l=:80`, `-active-healthcheck=1`; they give a flag twice, or an empty value,
//! and words after the flags. All of that has a meaning there, and keeps it here.

use std::{collections::HashSet, ffi::OsString, iter::Peekable};

use clap::{Arg, Command};

use super::values::boolean;

/// A command line in the form that the parser is given.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// The program's name, then each flag as `--name=value`, then a command, if there is one.
    pub(super) words: Vec<OsString>,
    /// Flags whose last value is empty, and which have their default for that, whatever the environment says.
    pub(super) emptied: HashSet<String>,
    /// How many words stand behind the flags and mean nothing. Some may be secret, so none is kept.
    pub(super) stray: usize,
}

impl Arguments {
    /// Reads `words`, of which the first is the program's name. `command` must be built. What cannot be understood is left as it
    /// is, for the parser to refuse.
    pub(super) fn read(command: &Command, words: impl IntoIterator<Item = OsString>) -> Self {
        let mut words = words.into_iter().peekable();
        let mut read = Self { words: words.next().into_iter().collect(), ..Self::default() };
        while let Some(word) = words.next() {
            match Flag::parse(command, &word) {
                Ok(flag) => read.take(flag, &mut words),
                Err(NotAFlag::End) => {
                    read.stray = words.count();
                    break;
                }
                Err(NotAFlag::Word) => {
                    let rest = std::iter::once(word).chain(words);
                    read.take_command(command, rest);
                    break;
                }
                Err(NotAFlag::Unknown) => read.words.push(in_long_form(word)),
            }
        }
        read
    }

    fn take(&mut self, flag: Flag<'_>, words: &mut Peekable<impl Iterator<Item = OsString>>) {
        let Flag { arg, value } = flag;
        let name = arg.get_long().unwrap_or_default();
        if takes_nothing(arg) {
            return self.order(name, value);
        }
        let value = match value {
            Some(value) => Some(value.into()),
            // Go takes no word for a boolean's value. Whoever writes one means it.
            None if is_boolean(arg) => words.next_if(is_boolean_word).or_else(|| Some("true".into())),
            None => words.next(),
        };
        match value.map(OsString::into_string) {
            Some(Ok(value)) => self.set(name, &value),
            Some(Err(unreadable)) => self.words.extend([format!("--{name}").into(), unreadable]),
            None => self.words.push(format!("--{name}").into()),
        }
    }

    /// Takes an order to print something, which is a boolean to Go.
    fn order(&mut self, name: &str, value: Option<String>) {
        let order = format!("--{name}");
        self.words.retain(|word| *word != *order);
        match value.as_deref().map(boolean) {
            None | Some(Ok(true)) => self.words.push(order.into()),
            Some(Ok(false)) => {}
            Some(Err(_)) => self.words.push(format!("{order}={}", value.unwrap_or_default()).into()),
        }
    }

    /// Sets a flag; what it was set to before counts no more if it has its default now.
    fn set(&mut self, name: &str, value: &str) {
        let value = if value.is_empty() && name == ACCESS_LOG { NO_LOG } else { value };
        if value.is_empty() {
            let earlier = format!("--{name}=");
            self.words.retain(|word| !word.to_string_lossy().starts_with(&earlier));
            self.emptied.insert(name.to_owned());
        } else {
            self.words.push(format!("--{name}={value}").into());
            self.emptied.remove(name);
        }
    }

    fn take_command(&mut self, command: &Command, mut words: impl Iterator<Item = OsString>) {
        let Some(first) = words.next() else { return };
        match first.to_str() {
            Some("help" | "h") => self.words.push("--help".into()),
            Some(name) if command.find_subcommand(name).is_some() => {
                self.words.push(first);
                self.words.extend(words);
            }
            _ => self.stray = 1 + words.count(),
        }
    }
}

/// A word that names a flag.
struct Flag<'a> {
    arg: &'a Arg,
    /// What stands behind an equals sign.
    value: Option<String>,
}

/// Why a word names none.
enum NotAFlag {
    /// It is the sign that no more flags follow.
    End,
    /// It does not look like one.
    Word,
    /// It looks like one, but there is none of that name.
    Unknown,
}

impl<'a> Flag<'a> {
    fn parse(command: &'a Command, word: &OsString) -> Result<Self, NotAFlag> {
        if !word.as_encoded_bytes().starts_with(b"-") {
            return Err(NotAFlag::Word);
        }
        let text = word.to_str().ok_or(NotAFlag::Unknown)?;
        let rest = match text.strip_prefix('-') {
            None | Some("") => return Err(NotAFlag::Word),
            Some("-") => return Err(NotAFlag::End),
            Some(rest) => rest.strip_prefix('-').unwrap_or(rest),
        };
        let (name, value) = match rest.split_once('=') {
            None => (rest, None),
            Some((name, value)) => (name, Some(value.to_owned())),
        };
        let is_named = |arg: &&Arg| {
            let mut letters = name.chars();
            let is_letter = arg.get_short().is_some() && arg.get_short() == letters.next() && letters.next().is_none();
            arg.get_long() == Some(name) || is_letter
        };
        let arg = command.get_arguments().find(is_named).ok_or(NotAFlag::Unknown)?;
        Ok(Self { arg, value })
    }
}

/// A word that looks like a flag, such that the parser does not take it for several letters, or for a letter and its value, but
/// names the whole of it when it refuses it.
fn in_long_form(word: OsString) -> OsString {
    match word.to_str().map(str::as_bytes) {
        Some([b'-', first, _, ..]) if *first != b'-' && *first != b'=' => {
            let mut long = OsString::from("-");
            long.push(word);
            long
        }
        _ => word,
    }
}

/// Whether a flag is one that need not have a value, as Go's booleans.
fn is_boolean(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|values| values.min_values() == 0)
}

fn is_boolean_word(word: &OsString) -> bool {
    word.to_str().is_some_and(|text| boolean(text).is_ok())
}

/// Whether a flag is an order to print something.
fn takes_nothing(arg: &Arg) -> bool {
    !arg.get_action().takes_values()
}

/// The only flag that has a meaning of its own when it is empty.
const ACCESS_LOG: &str = "access-log";
const NO_LOG: &str = "none";

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn read(words: &[&str]) -> Arguments {
        let value = |name: &'static str| Arg::new(name).long(name);
        let mut command = Command::new("planb")
            .arg(value("listen").short('l'))
            .arg(value("access-log"))
            .arg(value("check").num_args(0..=1).action(ArgAction::Set))
            .subcommand(Command::new("demo"));
        command.build();
        Arguments::read(&command, ["planb"].iter().chain(words).map(OsString::from))
    }

    fn words(words: &[&str]) -> Vec<String> {
        read(words).words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn one_dash_or_two_a_letter_or_a_name_an_equals_sign_or_none() {
        for form in [
            &["-listen", ":80"][..],
            &["--listen", ":80"],
            &["-listen=:80"],
            &["--listen=:80"],
            &["-l", ":80"],
            &["--l", ":80"],
            &["-l=:80"],
            &["--l=:80"],
        ] {
            assert_eq!(words(form), ["--listen=:80"], "{form:?}");
        }
        assert_eq!(words(&["-listen", "-1"]), ["--listen=-1"], "a value may look like a flag");
        assert_eq!(words(&["-listen=a=b"]), ["--listen=a=b"]);
    }

    #[test]
    fn a_boolean_needs_no_value_but_may_have_one() {
        assert_eq!(words(&["-check", "-l=:80"]), ["--check=true", "--listen=:80"]);
        assert_eq!(words(&["-check=F"]), ["--check=F"]);
        assert_eq!(words(&["--check", "False", "-l=:80"]), ["--check=False", "--listen=:80"]);
        assert_eq!(words(&["--check=nonsense"]), ["--check=nonsense"], "the parser refuses it");
    }

    #[test]
    fn an_empty_value_is_the_default_whatever_was_said_before() {
        let emptied = read(&["-l", ":80", "-check", "-l", ""]);
        assert_eq!(emptied.words, ["planb", "--check=true"]);
        assert!(emptied.emptied.contains("listen"));
        let set_again = read(&["-l=", "-l", ":81"]);
        assert_eq!(set_again.words, ["planb", "--listen=:81"]);
        assert!(set_again.emptied.is_empty());
        assert_eq!(words(&["--access-log", ""]), ["--access-log=none"]);
    }

    #[test]
    fn flags_end_at_the_first_other_word() {
        let read = read(&["-check", "oops", "-l", ":80"]);
        assert_eq!((read.words.len(), read.stray), (2, 3));
        assert_eq!(super::tests::read(&["--", "-l"]).stray, 1);
        assert_eq!(super::tests::read(&["-", "x"]).stray, 2);
    }

    #[test]
    fn commands_are_words_too() {
        assert_eq!(words(&["help"]), ["--help"]);
        assert_eq!(words(&["h"]), ["--help"]);
        assert_eq!(words(&["-help"]), ["--help"]);
        assert_eq!(words(&["-l=:80", "h", "x"]), ["--listen=:80", "--help"]);
        assert_eq!(words(&["demo", "--help"]), ["demo", "--help"]);
    }

    #[test]
    fn a_word_that_is_no_text_is_a_word() {
        use std::os::unix::ffi::OsStrExt;

        let unreadable = std::ffi::OsStr::from_bytes(b"\xFF\xFE").to_owned();
        let command = Command::new("planb");
        let read = Arguments::read(&command, ["planb".into(), unreadable, "x".into()]);
        assert_eq!((read.words.len(), read.stray), (1, 2));
    }

    #[test]
    fn an_order_to_print_something_is_a_boolean_too() {
        for order in ["-h", "--help", "-h=1", "--help=true"] {
            assert_eq!(words(&[order]), ["--help"], "{order}");
        }
        for countermand in ["-h=0", "--help=false", "-help=F"] {
            assert_eq!(words(&["-h", countermand, "-l=:80"]), ["--listen=:80"], "{countermand}");
        }
        assert_eq!(words(&["--help=maybe"]), ["--help=maybe"], "the parser refuses it");
    }

    #[test]
    fn what_is_no_flag_of_ours_is_left_to_the_parser() {
        for word in ["--nonsense", "-x", "---listen", "-=1", "--nonsense=1"] {
            assert_eq!(words(&[word, "-l=:80"]), [word, "--listen=:80"]);
        }
        for word in ["-nonsense", "-listn=:80", "-l:80"] {
            assert_eq!(words(&[word]), [format!("-{word}")], "it is no letter with something behind it");
        }
        assert_eq!(words(&["--listen"]), ["--listen"], "its value is missing");
    }
}
