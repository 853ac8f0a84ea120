//! What the routing table costs: `select` finds a request's backend, `choose` is the choice alone from lists of several
//! lengths, by each of the policies, and `reconcile` puts an edited record in force.

use std::{hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use planb::{
    clock::Moment,
    routing::{Backend, Choice, Frontend, Host, Routes, Seen, Slot, Tried},
    store::{DeadSet, List, Record},
    sync::Table,
};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    for backends in [1, 100, 10_000] {
        choose(&mut criterion, backends);
    }
    for frontends in [1_000, 1_000_000] {
        let mut table = build(frontends);
        let routes = Routes::default();
        routes.publish(table.snapshot());
        select(&mut criterion, &routes, frontends);
        reconcile(&mut criterion, &mut table, &routes, frontends);
    }
    criterion.final_summary();
}

fn select(criterion: &mut Criterion, routes: &Routes, frontends: u32) {
    let cases = [("hit", host as fn(u32) -> String), ("wildcard", below_wildcard), ("miss", unknown)];
    for (case, name) in cases {
        let mut random = Random(1);
        // New hosts for each call, so that at a million frontends the caches do not hold what is looked for.
        criterion.bench_function(&format!("select/{case}/{frontends}"), |bencher| {
            bencher.iter_batched_ref(
                || name(random.below(frontends)),
                |name| {
                    let snapshot = routes.load();
                    let found = snapshot.find(&Host::parse(name).expect("hosts are well-formed"));
                    assert_eq!(found.is_some(), case != "miss");
                    black_box(found.and_then(|frontend| frontend.choose(Moment::PAST, &Tried::default())))
                },
                BatchSize::SmallInput,
            );
        });
    }
}

fn choose(criterion: &mut Criterion, backends: usize) {
    let backend = |index: usize| Arc::new(Backend::parse(&format!("http://b{index}")).expect("it is well-formed"));
    let slots = (0..backends).map(|index| Slot { index, backend: backend(index) }).collect();
    let frontend = Frontend::new("host", "id", slots, backends).expect("there are backends");
    let (now, tried) = (Moment::from_millis(1), Tried::default());
    criterion.bench_function(&format!("choose/round-robin/{backends}"), |bencher| {
        bencher.iter(|| black_box(frontend.choose(now, &tried)));
    });
    let mut random = Random(1);
    criterion.bench_function(&format!("choose/least-requests/{backends}"), |bencher| {
        bencher.iter(|| {
            let draw = |count: usize| random.below(count.try_into().expect("there are few")) as usize;
            black_box(frontend.choose_less_busy(now, &tried, draw))
        });
    });
    let last = format!("http://b{}", backends - 1);
    criterion.bench_function(&format!("choose/sticky/{backends}"), |bencher| {
        bencher.iter(|| {
            let wanted = frontend.slot_by_tag(last.as_bytes(), |backend| backend.url()).map(Choice::of);
            black_box(frontend.choose_again(wanted.as_ref(), now, &tried))
        });
    });
}

fn reconcile(criterion: &mut Criterion, table: &mut Table, routes: &Routes, frontends: u32) {
    let mut random = Random(1);
    let mut edit = 0;
    criterion.bench_function(&format!("reconcile/{frontends}"), |bencher| {
        bencher.iter_batched_ref(
            || {
                edit += 1;
                record(random.below(frontends), edit)
            },
            |record| {
                table.begin(Seen::Together);
                assert!(table.apply(record, Moment::PAST).changed);
                routes.publish(table.snapshot());
                table.tidy();
            },
            BatchSize::SmallInput,
        );
    });
}

fn build(frontends: u32) -> Table {
    let mut table = Table::default();
    table.begin(Seen::OneByOne);
    for number in 0..frontends {
        table.apply(&record(number, 0), Moment::PAST);
    }
    table
}

/// One host in a hundred is a wildcard. Each has three backends; an edit gives it another identifier and first backend.
fn record(number: u32, edit: u32) -> Record {
    let host = if number.is_multiple_of(100) { format!("*.wild-{number}.example.com") } else { host(number) };
    let [_, a, b, c] = number.to_be_bytes();
    let elements = [
        format!("app-{number}-{edit}"),
        format!("http://10.{a}.{b}.{c}:{}", 8_000 + edit % 1_000),
        format!("http://10.{a}.{b}.{c}:9001"),
        format!("http://10.{a}.{b}.{c}:9002"),
    ];
    Record { host, list: Some(List::Elements(elements.map(Bytes::from).into())), dead: Some(DeadSet::default()) }
}

fn host(number: u32) -> String {
    // The hundredth is a wildcard, so its neighbour stands in.
    let number = if number.is_multiple_of(100) { number + 1 } else { number };
    format!("app-{number}.example.com")
}

fn below_wildcard(number: u32) -> String {
    format!("www.wild-{}.example.com", number - number % 100)
}

fn unknown(number: u32) -> String {
    format!("app-{number}.example.org")
}

/// Marsaglia's xorshift: a random number generator that costs nothing beside what is measured.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(limit)).expect("a remainder is below its divisor")
    }
}
