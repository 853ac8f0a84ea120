//! In which order the addresses of one name are tried: each in its turn, so that they share the load, and those that have
//! just failed last.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// One name's turns and recent failures.
#[derive(Default)]
pub struct Order {
    turn: AtomicUsize,
    failures: Mutex<Vec<(SocketAddr, Instant)>>,
}

impl Order {
    /// The addresses in the order for the next connection to `port`.
    pub fn next(&self, addresses: &[IpAddr], port: u16, now: Instant) -> Vec<SocketAddr> {
        let all = addresses.iter().map(|&address| SocketAddr::new(address, port));
        let failures = self.failures();
        let has_failed = |address: &SocketAddr| {
            failures.iter().any(|(failed, at)| failed == address && now.duration_since(*at) < HELD_AGAINST)
        };
        let (failed, mut order): (Vec<_>, Vec<_>) = all.partition(has_failed);
        if !order.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % order.len();
            order.rotate_left(turn);
        }
        order.extend(failed);
        order
    }

    /// Puts an address last for some seconds.
    pub fn hold_against(&self, address: SocketAddr, now: Instant) {
        let mut failures = self.failures();
        failures.retain(|(failed, at)| *failed != address && now.duration_since(*at) < HELD_AGAINST);
        failures.push((address, now));
    }

    /// Takes an address into the turns again.
    pub fn forgive(&self, address: SocketAddr) {
        self.failures().retain(|(failed, _)| *failed != address);
    }

    fn failures(&self) -> MutexGuard<'_, Vec<(SocketAddr, Instant)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the addresses into the order that turns begin with: sorted, since servers shuffle them, and the families in
/// alternation, so that one without a route never holds up the other for long (RFC 8305 section 4).
pub fn alternate(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let mut alternating = Vec::with_capacity(v6.len() + v4.len());
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    loop {
        match (v6.next(), v4.next()) {
            (None, None) => return alternating,
            (sixth, fourth) => alternating.extend(sixth.into_iter().chain(fourth)),
        }
    }
}

/// How long an address that has failed is tried last.
const HELD_AGAINST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn first(order: &Order, all: &[IpAddr], now: Instant) -> String {
        order.next(all, 80, now)[0].ip().to_string()
    }

    #[test]
    fn each_address_has_its_turn() {
        let (order, now, all) = (Order::default(), Instant::now(), addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
        let firsts: Vec<_> = (0..6).map(|_| first(&order, &all, now)).collect();
        assert_eq!(firsts[..3], ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(firsts[..3], firsts[3..]);
        assert_eq!(order.next(&all, 80, now).len(), 3);
    }

    #[test]
    fn what_has_failed_comes_last_for_a_while() {
        let (order, now, all) = (Order::default(), Instant::now(), addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
        let bad: SocketAddr = "10.0.0.2:80".parse().unwrap();
        order.hold_against(bad, now);
        let mut firsts: Vec<_> = (0..4).map(|_| first(&order, &all, now)).collect();
        firsts.sort();
        assert_eq!(firsts, ["10.0.0.1", "10.0.0.1", "10.0.0.3", "10.0.0.3"], "the others share its turns");
        assert_eq!(order.next(&all, 80, now)[2], bad);
        assert!((0..3).any(|_| order.next(&all, 81, now)[0].ip() == bad.ip()), "another port is another server");
        let later = now + HELD_AGAINST;
        assert!((0..3).any(|_| order.next(&all, 80, later)[0] == bad));
        order.hold_against(bad, later);
        order.forgive(bad);
        assert!((0..3).any(|_| order.next(&all, 80, later)[0] == bad));
    }

    #[test]
    fn all_are_tried_where_all_have_failed() {
        let (order, now, all) = (Order::default(), Instant::now(), addresses(&["10.0.0.1", "10.0.0.2"]));
        for address in order.next(&all, 80, now) {
            order.hold_against(address, now);
        }
        assert_eq!(order.next(&all, 80, now).len(), 2);
        assert!(order.next(&[], 80, now).is_empty());
    }

    #[test]
    fn the_families_alternate() {
        let mixed = addresses(&["10.0.0.3", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.1", "::1"]);
        assert_eq!(alternate(mixed), addresses(&["::1", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.3"]));
    }
}
