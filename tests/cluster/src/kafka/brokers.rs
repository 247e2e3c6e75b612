//! Several brokers on loopback that make one cluster, each of which can be killed, halted and started again.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Driver, Place, broker_of, format_storage, free_ports, keep, programs, wait_until_it_listens};

/// Three of them fit beside other tests; the log cleaner's buffer is made smaller than this for it.
const MEMORY: &str = "-Xmx200m";

/// A running cluster. Its brokers have the numbers 1, 2, 3 and on, and are controllers too: more than half of them must run.
#[derive(Debug)]
pub struct Brokers {
    place: Place,
    brokers: Vec<Broker>,
    driver: Option<Driver>,
}

#[derive(Debug)]
struct Broker {
    root: PathBuf,
    /// That for clients, and the controller's.
    ports: [u16; 2],
    keeper: Mutex<Child>,
}

impl Brokers {
    /// So many new brokers, without TLS and users. What consumer groups have committed is kept by all of them.
    ///
    /// # Errors
    /// When Java or Maven is missing, or the brokers do not start; the message holds the end of a log.
    pub fn on_loopback(count: usize) -> Result<Self> {
        let programs = programs()?;
        let mut attempt = 1;
        loop {
            match Self::start_all(&programs, count) {
                // Another process may have taken a port between our asking and the broker's.
                Err(_) if attempt < 3 => attempt += 1,
                done => return done,
            }
        }
    }

    fn start_all(programs: &Path, count: usize) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let place = Place { network: None, host: Ipv4Addr::LOCALHOST.into() };
        let cluster = COUNT.fetch_add(1, Ordering::Relaxed);
        let ports = free_ports(place.host, count * 2)?;
        let ports: Vec<[u16; 2]> = ports.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
        let mut brokers = Vec::new();
        for (index, own) in ports.iter().enumerate() {
            let name = format!("test-kafka-{}-cluster-{cluster}-{}", std::process::id(), index + 1);
            let root = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
            let settings = root.join("server.properties");
            fs::write(&settings, properties(&root, &place, index, &ports))?;
            format_storage(&place, programs, &settings)?;
            let keeper = Mutex::new(keep(&root, &broker_of(&place, programs, MEMORY, &settings))?);
            brokers.push(Broker { root, ports: *own, keeper });
        }
        let mut all = Self { place, brokers, driver: None };
        for broker in &all.brokers {
            wait_until_it_listens(&broker.root, &all.place, &broker.ports)?;
        }
        all.driver = Some(Driver::start(&all.place, programs, &all.addresses())?);
        Ok(all)
    }

    /// Where clients reach the brokers: `host:port,host:port`.
    #[must_use]
    pub fn addresses(&self) -> String {
        let each = self.brokers.iter().map(|one| SocketAddr::from((self.place.host, one.ports[0])).to_string());
        each.collect::<Vec<_>>().join(",")
    }

    /// Has Kafka's own client library do something, as [`super::Kafka::ask`].
    ///
    /// # Errors
    /// What the library says.
    pub fn ask(&self, command: &[&str]) -> Result<String> {
        self.driver.as_ref().context("the driver has not started")?.ask(command)
    }

    /// Kills a broker, without a word to the others. What it has stored stays.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&self, number: usize) -> Result<()> {
        let broker = self.tell(number, "kill")?;
        let until = Instant::now() + Duration::from_secs(60);
        while fs::read_to_string(broker.root.join("pid")).is_ok_and(|pid| !pid.trim().is_empty()) {
            if Instant::now() > until {
                bail!("broker {number} is not killed");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Starts a killed broker again, and waits until it listens.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, number: usize) -> Result<()> {
        let broker = self.tell(number, "start")?;
        wait_until_it_listens(&broker.root, &self.place, &broker.ports)
    }

    /// Halts a broker: its connections stay open, and nothing is answered.
    ///
    /// # Errors
    /// There is no such broker.
    pub fn halt(&self, number: usize) -> Result<()> {
        self.tell(number, "halt").map(drop)
    }

    /// Lets a halted broker go on.
    ///
    /// # Errors
    /// There is no such broker.
    pub fn go_on(&self, number: usize) -> Result<()> {
        self.tell(number, "continue").map(drop)
    }

    fn tell(&self, number: usize, word: &str) -> Result<&Broker> {
        let broker = number.checked_sub(1).and_then(|index| self.brokers.get(index)).context("no such broker")?;
        let mut keeper = broker.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let input = keeper.stdin.as_mut().context("the keeper has no pipe")?;
        writeln!(input, "{word}")?;
        Ok(broker)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(keeper.stdin.take());
        let _ = keeper.wait();
    }
}

fn properties(root: &Path, place: &Place, index: usize, ports: &[[u16; 2]]) -> String {
    let (host, [clients, controller], count) = (place.host, ports[index], ports.len());
    let voters: Vec<String> =
        ports.iter().enumerate().map(|(index, [_, port])| format!("{}@{host}:{port}", index + 1)).collect();
    format!(
        "process.roles=broker,controller\nnode.id={}\ncontroller.quorum.voters={}\n\
         listeners=OPEN://{host}:{clients},CONTROLLER://{host}:{controller}\nadvertised.listeners=OPEN://{host}:{clients}\n\
         listener.security.protocol.map=OPEN:PLAINTEXT,CONTROLLER:PLAINTEXT\ncontroller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=OPEN\nlog.dirs={}/data\nnum.network.threads=2\nnum.io.threads=4\n\
         offsets.topic.replication.factor={count}\noffsets.topic.num.partitions={count}\n\
         transaction.state.log.replication.factor={count}\ntransaction.state.log.min.isr=1\ntransaction.state.log.num.partitions=1\n\
         log.cleaner.backoff.ms=200\nlog.segment.delete.delay.ms=100\nlog.retention.check.interval.ms=500\n\
         log.cleaner.dedupe.buffer.size=8388608\ngroup.initial.rebalance.delay.ms=0\nauto.leader.rebalance.enable=false\n\
         broker.session.timeout.ms=6000\nbroker.heartbeat.interval.ms=1000\n\
         controller.quorum.fetch.timeout.ms=5000\ncontroller.quorum.election.timeout.ms=2000\n",
        index + 1,
        voters.join(","),
        root.display(),
    )
}
