//! Reading all lists as fast as Redis can tell them.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{
    List, Page, Server, StoreError, answers,
    bulk::{Commands, Wire},
};

/// A walk through all lists, by a task that has the connection for as long as it lasts, so that replies are parsed while
/// others are applied.
pub(super) struct Walk {
    pages: mpsc::Receiver<Listed>,
    walking: AbortOnDropHandle<Result<Wire, StoreError>>,
}

/// One page of a walk.
#[derive(Debug)]
pub struct Listed {
    /// What was found on it.
    pub page: Page,
    /// The lists of its hosts, in their order.
    pub lists: Vec<List>,
}

impl Walk {
    /// Begins one, in which Redis looks at about `effort` keys for each page. The limit is for each silence of the server's.
    pub fn begin(wire: Wire, effort: u32, limit: Duration) -> Self {
        let (found, pages) = mpsc::channel(4);
        Self { pages, walking: AbortOnDropHandle::new(tokio::spawn(walk(wire, effort, limit, found))) }
    }

    /// The next page; `None` after the last.
    pub async fn next(&mut self) -> Option<Listed> {
        self.pages.recv().await
    }

    /// The connection, after the last page.
    pub async fn end(self, server: &Server) -> Result<Wire, StoreError> {
        self.walking.await.map_err(|_| super::bulk::given_up(server))?
    }
}

async fn walk(mut wire: Wire, effort: u32, limit: Duration, found: mpsc::Sender<Listed>) -> Result<Wire, StoreError> {
    let mut commands = Commands::default();
    answers::ask_for_page(&mut commands, FIRST, effort);
    wire.send(&commands, limit).await?;
    let mut page = next_page(&mut wire, effort, limit).await?;
    loop {
        // The page after this one was asked for with this one's lists, and before them: so Redis has been told what to do next
        // before it is done.
        let next = match page.next {
            Some(_) => Some(next_page(&mut wire, effort, limit).await?),
            None => None,
        };
        let replies = wire.replies(page.hosts.len(), limit).await?;
        let lists = replies.into_iter().map(|reply| answers::list(&wire.server, reply)).collect::<Result<_, _>>()?;
        // Whoever waits for it may have given up.
        let is_wanted = found.send(Listed { page, lists }).await.is_ok();
        match next {
            Some(next) if is_wanted => page = next,
            _ => return Ok(wire),
        }
    }
}

/// Takes a page that was asked for, and asks for the one after it and for its lists.
async fn next_page(wire: &mut Wire, effort: u32, limit: Duration) -> Result<Page, StoreError> {
    let reply = wire.replies(1, limit).await?.pop();
    let page = answers::page(&wire.server, reply)?;
    let mut commands = Commands::default();
    if let Some(next) = &page.next {
        answers::ask_for_page(&mut commands, next, effort);
    }
    for host in &page.hosts {
        answers::ask_for_list(&mut commands, host);
    }
    wire.send(&commands, limit).await?;
    Ok(page)
}

/// The cursor that begins a scan.
pub const FIRST: &str = "0";
