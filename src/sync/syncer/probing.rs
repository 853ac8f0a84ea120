//! Changes of our own, made for the events that should come of them.

use std::time::Duration;

use tokio::time;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::store::{Notifications, Place, Session, StoreError, WriteSession};

/// The attempts, in one session with the read Redis, to hear the kinds of events that may be on and have not come.
pub(super) struct Probing {
    /// The write Redis.
    place: Place,
    due: time::Instant,
    /// Ends with the session.
    attempt: Option<AbortOnDropHandle<()>>,
}

impl Probing {
    /// At the beginning of a session; changes will be made at this place.
    pub fn new(place: Place) -> Self {
        Self { place, due: time::Instant::now(), attempt: None }
    }

    /// Begins an attempt if there is something to learn from one, and the last was long enough ago.
    pub fn begin_if_due(&mut self, session: &Session) {
        let is_unknown = session.vitals().notifications == Notifications::Unknown;
        if !is_unknown || session.unheard().is_empty() || time::Instant::now() < self.due {
            return;
        }
        self.due = time::Instant::now() + PAUSE;
        let place = self.place.clone();
        self.attempt = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            // Whether it succeeds is seen by what is heard; the write Redis need not be there, nor allow it.
            if let Err(error) = attempt(&place).await {
                debug!("what events there are could not be tried: {error}");
            }
        })));
    }
}

async fn attempt(place: &Place) -> Result<(), StoreError> {
    WriteSession::open(&place.find_briefly().await?).await?.stir().await
}

/// How long after one attempt the next may begin.
const PAUSE: Duration = Duration::from_mins(1);
