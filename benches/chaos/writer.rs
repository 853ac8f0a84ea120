//! Whoever edits routes: changes the model and the master together.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    dice::Dice,
    model::Model,
    redis::{Command, Redis, Reply},
    stop::Stop,
};

/// The master's editor. An edit changes the model whatever becomes of it in Redis; where that is not known, the host is
/// written anew as soon as the master answers.
pub struct Writer {
    /// What should be so.
    pub model: Model,
    /// Edits made.
    pub edits: u64,
    dice: Dice,
    port: u16,
    stop: Arc<Stop>,
    redis: Option<Redis>,
    unsure: BTreeSet<usize>,
}

impl Writer {
    /// An editor of the master on this port.
    pub fn new(model: Model, dice: Dice, port: u16, stop: &Arc<Stop>) -> Self {
        Self { model, edits: 0, dice, port, stop: Arc::clone(stop), redis: None, unsure: BTreeSet::new() }
    }

    /// Makes so many edits in one pipeline.
    pub fn edit(&mut self, count: usize) {
        // The edits go on in the model where this fails.
        let is_up = self.repair().is_ok();
        let (mut commands, mut hosts) = (Vec::new(), BTreeSet::new());
        for _ in 0..count {
            let edit = self.model.edit(&mut self.dice);
            commands.extend(edit.commands);
            hosts.extend(edit.hosts);
        }
        self.edits += count as u64;
        if !is_up || !self.send(&commands).is_ok_and(|replies| replies.iter().all(is_done)) {
            self.unsure.extend(hosts);
        }
    }

    /// Writes anew what is not known to have arrived.
    ///
    /// # Errors
    /// When the master does not answer, or refuses.
    pub fn repair(&mut self) -> io::Result<()> {
        let commands: Vec<Command> = self.unsure.iter().flat_map(|&number| self.model.rewrite(number)).collect();
        self.send_all(&commands)?;
        self.unsure.clear();
        Ok(())
    }

    /// Writes everything: the never-edited hosts first, as one transaction that begins with these commands.
    ///
    /// # Errors
    /// As [`Writer::repair`].
    pub fn write_all(&mut self, before: &[Command]) -> io::Result<()> {
        self.send_all(&self.model.write_steady(before))?;
        self.send_all(&self.model.write_rest())?;
        self.unsure.clear();
        Ok(())
    }

    /// Sends commands none of which may fail.
    ///
    /// # Errors
    /// As [`Writer::repair`].
    pub fn send_all(&mut self, commands: &[Command]) -> io::Result<()> {
        for page in commands.chunks(1_000) {
            if let Some(refusal) = self.send(page)?.into_iter().find(|reply| !is_done(reply)) {
                return Err(io::Error::other(format!("the master refuses: {refusal:?}")));
            }
        }
        Ok(())
    }

    fn send(&mut self, commands: &[Command]) -> io::Result<Vec<Reply>> {
        let mut redis = match self.redis.take() {
            Some(redis) => redis,
            None => Redis::connect(self.port, &self.stop)?,
        };
        let replies = redis.send(commands)?;
        self.redis = Some(redis);
        Ok(replies)
    }
}

fn is_done(reply: &Reply) -> bool {
    match reply {
        Reply::Error(_) => false,
        Reply::Array(replies) => replies.iter().all(is_done),
        _ => true,
    }
}

/// A writer at work in the background, which others may borrow between two of its edits.
pub struct Editing {
    writer: Arc<Mutex<Writer>>,
    pauses: Arc<AtomicBool>,
}

impl Editing {
    /// Starts to edit until the campaign ends or the handle is dropped.
    pub fn start(writer: Writer, mut pace: Dice) -> Self {
        let stop = Arc::clone(&writer.stop);
        let writer = Arc::new(Mutex::new(writer));
        let pauses = Arc::new(AtomicBool::new(true));
        let (shared, pausing) = (Arc::downgrade(&writer), Arc::clone(&pauses));
        thread::spawn(move || {
            while let Some(writer) = shared.upgrade()
                && !stop.is_requested()
            {
                if !pausing.load(Ordering::Relaxed) {
                    writer.lock().unwrap_or_else(PoisonError::into_inner).edit(1 + pace.below(5));
                }
                drop(writer);
                thread::sleep(Duration::from_millis(10));
            }
        });
        Self { writer, pauses }
    }

    /// The writer, once it is between two edits.
    pub fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to edit on its own.
    pub fn pause(&self, pauses: bool) {
        self.pauses.store(pauses, Ordering::Relaxed);
    }
}
