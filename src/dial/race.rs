//! Several attempts at one thing: the next begins when the one before has failed or takes long, and the first to succeed
//! ends them all (RFC 8305 section 5). What is attempted is the caller's business.

use std::time::Duration;

use tokio::task::JoinSet;

/// How a race ended.
pub struct Finish<T, E> {
    /// Which attempt was the first to succeed, counted from 0, and what it brought.
    pub won: Option<(usize, T)>,
    /// The attempts that had failed by then, in the order in which they did.
    pub failed: Vec<(usize, E)>,
}

impl<T, E> Finish<T, E> {
    /// The attempts that cost time: those that failed, and those that were overtaken by a later one.
    pub fn lost(&self) -> impl Iterator<Item = usize> {
        let overtaken = self.won.as_ref().map_or(0, |&(winner, _)| winner);
        let failed = self.failed.iter().map(|&(index, _)| index);
        (0..overtaken).chain(failed.filter(move |&index| index >= overtaken))
    }
}

/// Begins the attempts in their order, each `head_start` after the one before, or at once when one has failed. Those still
/// running when one succeeds are dropped, as all are when the race itself is.
pub async fn race<T, E, A>(attempts: impl IntoIterator<Item = A>, head_start: Duration) -> Finish<T, E>
where
    A: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    let mut waiting = attempts.into_iter().enumerate().peekable();
    let mut running = JoinSet::new();
    let mut finish = Finish { won: None, failed: Vec::new() };
    loop {
        if let Some((index, attempt)) = waiting.next() {
            running.spawn(async move { (index, attempt.await) });
        }
        tokio::select! {
            biased;
            ended = running.join_next() => match ended {
                Some(Ok((index, Ok(value)))) => {
                    finish.won = Some((index, value));
                    return finish;
                }
                Some(Ok((index, Err(error)))) => finish.failed.push((index, error)),
                // A panic has been reported by the runtime, and the others still run.
                Some(Err(_)) => {}
                None => return finish,
            },
            () = tokio::time::sleep(head_start), if waiting.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const HEAD_START: Duration = Duration::from_millis(250);

    /// One that succeeds or fails at once, or never ends.
    async fn attempt(ending: Option<Result<u8, u8>>) -> Result<u8, u8> {
        match ending {
            Some(ending) => ending,
            None => pending().await,
        }
    }

    async fn run(endings: &[Option<Result<u8, u8>>]) -> Finish<u8, u8> {
        race(endings.iter().map(|&ending| attempt(ending)).collect::<Vec<_>>(), HEAD_START).await
    }

    #[tokio::test]
    async fn the_first_success_wins_whatever_came_before() {
        let finish = run(&[Some(Err(7)), None, Some(Ok(1)), Some(Ok(2))]).await;
        assert_eq!((finish.won, &finish.failed[..]), (Some((2, 1)), &[(0, 7)][..]));
        let finish = run(&[Some(Err(7)), None, Some(Ok(1)), Some(Ok(2))]).await;
        assert_eq!(finish.lost().collect::<Vec<_>>(), [0, 1]);
        let finish = run(&[Some(Ok(1)), Some(Ok(2))]).await;
        assert_eq!((finish.won, finish.lost().count()), (Some((0, 1)), 0));
    }

    #[tokio::test]
    async fn failures_do_not_wait_for_the_head_start() {
        let finish = race([attempt(Some(Err(1))), attempt(Some(Err(2)))], Duration::from_hours(1)).await;
        assert_eq!((finish.won, &finish.failed[..]), (None, &[(0, 1), (1, 2)][..]));
        assert_eq!(finish.lost().collect::<Vec<_>>(), [0, 1]);
        assert!(run(&[]).await.won.is_none());
    }
}
