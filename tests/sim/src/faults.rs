//! What goes wrong in the safety phase, and when it is over. Drawn from the seed, one fault after the other, several at once.

use std::time::Duration;

use rand::Rng;

use crate::net::Node;
use crate::world::World;

#[derive(Debug, Clone)]
enum Undo {
    RestartBroker(u64),
    StartAgent(usize),
    StartGateway(usize),
    Heal(Vec<(Node, Node)>),
    Quiet,
    Clock(usize),
}

/// Faults that are not over.
#[derive(Debug, Default)]
pub struct Faults {
    next_at: Duration,
    undo: Vec<(Duration, Undo)>,
}

impl Faults {
    /// Ends what is over, and begins something new when it is time.
    pub fn step(&mut self, world: &mut World) {
        let now = world.scene.now;
        let (due, later) = std::mem::take(&mut self.undo)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.undo = later;
        let due: Vec<(Duration, Undo)> = due;
        for (_, undo) in due {
            end(undo, world);
        }
        if now >= self.next_at {
            self.next_at = now + Duration::from_millis(world.scene.rng.random_range(200..2_000));
            self.begin(world);
        }
    }

    /// Ends all of them.
    pub fn heal(&mut self, world: &mut World) {
        for (_, undo) in std::mem::take(&mut self.undo) {
            end(undo, world);
        }
        world.scene.net.heal();
    }

    fn begin(&mut self, world: &mut World) {
        let now = world.scene.now;
        let brokers = world.brokers.len() as u64;
        let broker = world.scene.rng.random_range(1..=brokers);
        let cluster = world.scene.rng.random_range(0..world.agents.len());
        let long = now + Duration::from_millis(world.scene.rng.random_range(300..6_000));
        match world.scene.rng.random_range(0..100) {
            0..20 => {
                let down = world.brokers.iter().filter(|broker| !broker.is_up).count() as u64;
                if (down + 1) * 2 < brokers {
                    self.crash_broker(broker, long, world);
                }
            }
            20..24 => (1..=brokers).for_each(|broker| self.crash_broker(broker, long, world)),
            24..38 => {
                let paths = between(&[Node::Broker(broker)], &everyone(world), true);
                self.cut(paths, long, "a broker is cut off", world);
            }
            38..52 => {
                let everyone = everyone(world);
                let from = everyone[world.scene.rng.random_range(0..everyone.len())];
                let to = everyone[world.scene.rng.random_range(0..everyone.len())];
                self.cut(vec![(from, to)], long, "one way is cut", world);
            }
            52..62 => {
                let brokers: Vec<Node> = (1..=brokers).map(Node::Broker).collect();
                let both = world.scene.rng.random_bool(0.7);
                self.cut(
                    between(&[Node::Agent(cluster)], &brokers, both),
                    long,
                    "a control path is cut",
                    world,
                );
            }
            62..72 => {
                let gateways: Vec<Node> = (0..world.agents.len()).map(Node::Gateway).collect();
                let both = world.scene.rng.random_bool(0.7);
                self.cut(
                    between(&[Node::Gateway(cluster)], &gateways, both),
                    long,
                    "a data path is cut",
                    world,
                );
            }
            72..80 => {
                world.scene.net.loss = world.scene.rng.random_range(10..200);
                world.scene.net.jitter = Duration::from_millis(world.scene.rng.random_range(1..60));
                let (loss, jitter) = (world.scene.net.loss, world.scene.net.jitter);
                world.scene.note(format_args!(
                    "the network loses {loss} in 1000, jitter {jitter:?}"
                ));
                self.undo.push((long, Undo::Quiet));
            }
            80..88 => {
                if world.agents[cluster].is_up() {
                    world.agents[cluster].crash(&mut world.scene);
                    self.undo.push((long, Undo::StartAgent(cluster)));
                }
            }
            88..94 => {
                if world.gateways[cluster].is_up {
                    world.gateways[cluster].crash(&mut world.scene);
                    self.undo.push((long, Undo::StartGateway(cluster)));
                }
            }
            _ => {
                // Beyond the bound of five minutes now and then: refused until it is set right.
                let skew = world.scene.rng.random_range(-420_000..420_000);
                world
                    .scene
                    .note(format_args!("the clock of c{cluster} is {skew} ms off"));
                world.agents[cluster].skew_ms = skew;
                self.undo.push((long, Undo::Clock(cluster)));
            }
        }
    }

    fn crash_broker(&mut self, id: u64, until: Duration, world: &mut World) {
        let broker = &mut world.brokers[usize::try_from(id).unwrap_or(1) - 1];
        if broker.is_up {
            broker.crash(&mut world.scene);
            self.undo.push((until, Undo::RestartBroker(id)));
        }
    }

    fn cut(&mut self, paths: Vec<(Node, Node)>, until: Duration, what: &str, world: &mut World) {
        world.scene.note(format_args!("{what}: {:?}", paths.first()));
        for (from, to) in &paths {
            world.scene.net.set_cut(*from, *to, true);
        }
        self.undo.push((until, Undo::Heal(paths)));
    }
}

fn end(undo: Undo, world: &mut World) {
    match undo {
        Undo::RestartBroker(id) => {
            world.brokers[usize::try_from(id).unwrap_or(1) - 1].restart(&mut world.scene)
        }
        Undo::StartAgent(number) => world.agents[number].start(&mut world.scene),
        Undo::StartGateway(number) => world.gateways[number].start(&mut world.scene),
        Undo::Heal(paths) => paths
            .iter()
            .for_each(|(from, to)| world.scene.net.set_cut(*from, *to, false)),
        Undo::Quiet => {
            world.scene.net.loss = 0;
            world.scene.net.jitter = Duration::from_millis(1);
        }
        Undo::Clock(number) => world.agents[number].skew_ms = 0,
    }
}

fn everyone(world: &World) -> Vec<Node> {
    let brokers = (1..=world.brokers.len() as u64).map(Node::Broker);
    let clusters = (0..world.agents.len()).flat_map(|number| [Node::Agent(number), Node::Gateway(number)]);
    brokers.chain(clusters).collect()
}

fn between(these: &[Node], those: &[Node], both_ways: bool) -> Vec<(Node, Node)> {
    let ways = these
        .iter()
        .flat_map(|from| those.iter().map(move |to| (*from, *to)));
    ways.filter(|(from, to)| from != to)
        .flat_map(|(from, to)| [Some((from, to)), both_ways.then_some((to, from))])
        .flatten()
        .collect()
}
