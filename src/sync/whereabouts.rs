//! Which Redis a task is with, and why it left the one before. Pure.

/// A server, and the history of its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The server's name.
    pub server: String,
    /// Its replication id.
    pub history: String,
}

/// Where a task is, or was last.
#[derive(Default)]
pub struct Whereabouts {
    home: Option<Home>,
    departure: Option<String>,
}

/// A change from one server to another.
#[derive(Debug, PartialEq, Eq)]
pub struct Move {
    /// The server before.
    pub from: String,
    /// Why it was left.
    pub reason: Option<String>,
}

impl Whereabouts {
    /// The place that was last arrived at.
    pub fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// The place cannot be stayed at. Of several reasons before the next arrival, the first is the one.
    pub fn leave(&mut self, reason: String) {
        self.departure.get_or_insert(reason);
    }

    /// Arrives; returns the move that this was, if it was to another server.
    pub fn arrive(&mut self, home: Home) -> Option<Move> {
        let reason = self.departure.take();
        let server = home.server.clone();
        let from = self.home.replace(home).map(|before| before.server).filter(|before| *before != server)?;
        Some(Move { from, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_has_one_reason() {
        let home = |server: &str, history: &str| Home { server: server.to_owned(), history: history.to_owned() };
        let mut whereabouts = Whereabouts::default();
        assert_eq!(whereabouts.arrive(home("a", "1")), None);
        whereabouts.leave("frozen".to_owned());
        whereabouts.leave("refused".to_owned());
        assert_eq!(
            whereabouts.arrive(home("b", "1")),
            Some(Move { from: "a".to_owned(), reason: Some("frozen".to_owned()) })
        );
        assert_eq!(whereabouts.arrive(home("b", "2")), None);
        assert_eq!(whereabouts.home(), Some(&home("b", "2")));
        assert_eq!(whereabouts.arrive(home("a", "2")), Some(Move { from: "b".to_owned(), reason: None }));
    }
}
