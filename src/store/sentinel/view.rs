//! What one sentinel says of a master and its replicas. Pure: replies in, a choice out.

use std::collections::HashMap;

use super::super::Address;

/// What a sentinel holds to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Which fail-over this follows from (`config-epoch`): of two sentinels that disagree, the one with more is right.
    pub epoch: u64,
    /// Where the master is.
    pub master: Address,
    /// Whether the master is agreed to be down, or a fail-over is under way.
    pub in_trouble: bool,
    /// The master's replicas, in the order of their addresses.
    pub replicas: Vec<Replica>,
}

/// A replica as a sentinel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Where it is.
    pub address: Address,
    /// Whether the sentinel believes that it is up. One that it has just promoted, it is cut off from for a second, since
    /// it tells it to close all connections.
    pub is_up: bool,
    /// Whether the sentinel is also connected to it, and it to its master.
    pub is_healthy: bool,
}

/// One server's description, as SENTINEL MASTER and SENTINEL REPLICAS give it.
pub type Fields = HashMap<String, String>;

impl View {
    /// Reads the replies to SENTINEL MASTER, SENTINEL GET-MASTER-ADDR-BY-NAME and SENTINEL REPLICAS; `None` if they are of
    /// another form.
    ///
    /// The first of them goes on naming the old master until a fail-over is over, the second names the new one as soon as
    /// it is promoted.
    pub fn parse(master: &Fields, address: &[String], replicas: &[Fields]) -> Option<Self> {
        let [host, port] = address else { return None };
        let mut replicas: Vec<_> = replicas.iter().map(Replica::parse).collect::<Option<_>>()?;
        replicas.sort_by_cached_key(|replica| format!("{:?}", replica.address));
        Some(Self {
            epoch: master.get("config-epoch")?.parse().ok()?,
            master: Address::Tcp(host.clone(), port.parse().ok()?),
            in_trouble: has_flag(master, &["o_down", "failover_in_progress"]),
            replicas,
        })
    }

    /// Whether this is a replica that can be read from.
    pub fn has_healthy(&self, address: &Address) -> bool {
        self.healthy(0).any(|healthy| healthy == address)
    }

    /// The replicas that can be read from, beginning with another one for each `preference`, so that not all proxies crowd
    /// on the same.
    pub fn healthy(&self, preference: usize) -> impl Iterator<Item = &Address> {
        let healthy: Vec<_> = self.replicas.iter().filter(|replica| replica.is_healthy).collect();
        let first = preference.checked_rem(healthy.len()).unwrap_or(0);
        let count = healthy.len();
        healthy.into_iter().cycle().skip(first).take(count).map(|replica| &replica.address)
    }
}

impl Replica {
    fn parse(fields: &Fields) -> Option<Self> {
        let is_up = !has_flag(fields, &["s_down", "o_down"]);
        let is_connected = is_up && !has_flag(fields, &["disconnected"]);
        let says = |name: &str, value: &str| fields.get(name).is_some_and(|said| said == value);
        Some(Self {
            address: Address::Tcp(fields.get("ip")?.clone(), fields.get("port")?.parse().ok()?),
            is_up,
            is_healthy: is_connected && says("master-link-status", "ok") && !says("role-reported", "master"),
        })
    }
}

fn has_flag(fields: &Fields, flags: &[&str]) -> bool {
    fields.get("flags").is_some_and(|said| said.split(',').any(|flag| flags.contains(&flag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        text.split(' ')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    fn view(master: &str, replicas: &[&str]) -> View {
        let address = ["10.0.0.1".to_owned(), "6379".to_owned()];
        let replicas: Vec<_> = replicas.iter().map(|text| fields(text)).collect();
        View::parse(&fields(master), &address, &replicas).unwrap()
    }

    fn at(port: u16) -> Address {
        Address::Tcp("10.0.0.2".to_owned(), port)
    }

    #[test]
    fn reads_what_a_sentinel_says() {
        let view =
            view("name=m flags=master config-epoch=3", &["ip=10.0.0.2 port=1 flags=slave master-link-status=ok"]);
        assert_eq!((view.epoch, view.in_trouble), (3, false));
        assert_eq!(view.master, Address::Tcp("10.0.0.1".to_owned(), 6379));
        assert_eq!(view.replicas, [Replica { address: at(1), is_up: true, is_healthy: true }]);
    }

    #[test]
    fn a_master_is_in_trouble_when_that_is_agreed() {
        let in_trouble = |flags| view(&format!("config-epoch=0 flags=master,{flags}"), &[]).in_trouble;
        assert!(in_trouble("s_down,o_down") && in_trouble("failover_in_progress"));
        assert!(!in_trouble("s_down") && !in_trouble("disconnected"));
    }

    #[test]
    fn a_replica_that_is_down_or_has_lost_its_master_is_not_healthy() {
        let rest = "ip=10.0.0.2 port=1 master-link-status";
        let view = view(
            "config-epoch=0 flags=master",
            &[
                &format!("{rest}=ok flags=slave,s_down"),
                &format!("{rest}=ok flags=slave,o_down"),
                &format!("{rest}=ok flags=slave,disconnected"),
                &format!("{rest}=err flags=slave"),
                &format!("{rest}=ok flags=slave role-reported=master"),
                "ip=10.0.0.2 port=1 flags=slave",
            ],
        );
        assert_eq!(view.healthy(0).count(), 0);
        assert_eq!(view.replicas.iter().filter(|replica| replica.is_up).count(), 4);
        assert!(!view.has_healthy(&at(1)));
    }

    #[test]
    fn preferences_spread_over_the_healthy_replicas() {
        let replicas: Vec<String> =
            [1, 2, 3].map(|port| format!("ip=10.0.0.2 port={port} flags=slave master-link-status=ok")).into();
        let view = view("config-epoch=0", &replicas.iter().map(String::as_str).collect::<Vec<_>>());
        for preference in 0..7 {
            let order: Vec<_> = view.healthy(preference).cloned().collect();
            assert_eq!(order.len(), 3);
            assert_eq!(order[0], at(u16::try_from(preference % 3).unwrap() + 1));
        }
        assert!(view.has_healthy(&at(2)));
    }

    #[test]
    fn replies_of_another_form_are_refused() {
        let address = ["10.0.0.1".to_owned(), "6379".to_owned()];
        assert_eq!(View::parse(&fields("flags=master"), &address, &[]), None);
        assert_eq!(View::parse(&fields("config-epoch=0"), &[], &[]), None);
        assert_eq!(View::parse(&fields("config-epoch=0"), &["h".to_owned(), "x".to_owned()], &[]), None);
        assert_eq!(View::parse(&fields("config-epoch=0"), &address, &[fields("flags=slave")]), None);
    }
}
