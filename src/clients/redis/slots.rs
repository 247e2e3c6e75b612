//! Which node of a Redis Cluster holds which key, as its nodes tell. Pure.
//!
//! A key has one of 16,384 slots, and each slot has one master. `CLUSTER SLOTS` tells the masters of all slots; a node that is asked about a key that it
//! does not hold answers with a redirection.

use super::{Reply, address::Address};
use crate::clients::address::is_host;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// A cluster has no more masters than this; the makers of Redis advise against more than 1,000 nodes.
const MOST_MASTERS: usize = 500;

/// The slot of a key: that of the part in braces, where it has one, so that keys can be kept together.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let braced = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let length = rest.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &rest[..length])
    });
    crc16(braced.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 { shifted } else { shifted ^ 0x1021 }
        })
    })
}

/// The masters of all slots.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct SlotMap {
    /// First and last slot of each range, and the master.
    ranges: Vec<(u16, u16, Address)>,
    replicas: Vec<Address>,
}

impl SlotMap {
    /// Reads the answer to `CLUSTER SLOTS` of the node that was asked at `asked`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(reply: &Reply, asked: &Address) -> Result<Self, &'static str> {
        const NO_SENSE: &str = "the answer to CLUSTER SLOTS makes no sense";
        let mut map = Self::default();
        for range in reply.as_array().ok_or(NO_SENSE)? {
            let [first, last, nodes @ ..] = range.as_array().ok_or(NO_SENSE)? else { return Err(NO_SENSE) };
            let slot = |reply: &Reply| reply.as_count().and_then(|slot| u16::try_from(slot).ok());
            let (Some(first), Some(last)) = (slot(first), slot(last)) else { return Err(NO_SENSE) };
            let (master, replicas) = nodes.split_first().ok_or(NO_SENSE)?;
            if first > last || last >= SLOTS {
                return Err(NO_SENSE);
            }
            // A master that does not say where it is, or a replica that makes no sense, is passed over.
            map.ranges.extend(node(master, asked).map(|master| (first, last, master)));
            map.replicas.extend(replicas.iter().filter_map(|replica| node(replica, asked)));
        }
        map.replicas.sort();
        map.replicas.dedup();
        if map.masters().len() > MOST_MASTERS || map.replicas.len() > MOST_MASTERS * 4 {
            return Err("the cluster names more nodes than a Redis Cluster can have");
        }
        Ok(map)
    }

    /// The master of a slot, where one is known.
    pub(super) fn master_of(&self, slot: u16) -> Option<&Address> {
        self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).map(|(_, _, master)| master)
    }

    /// Each master once.
    pub(super) fn masters(&self) -> Vec<&Address> {
        let mut masters: Vec<&Address> = self.ranges.iter().map(|(_, _, master)| master).collect();
        masters.sort();
        masters.dedup();
        masters
    }

    /// All nodes that are known, masters first.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Address> {
        self.masters().into_iter().chain(&self.replicas)
    }

    /// The node at this host and port as the map knows it, with its name.
    pub(super) fn known(&self, address: Address) -> Address {
        self.nodes().find(|node| node.is_at(&address)).cloned().unwrap_or(address)
    }
}

/// One node: `[endpoint, port, id, [name, value, …]]`.
fn node(reply: &Reply, asked: &Address) -> Option<Address> {
    let [endpoint, port, rest @ ..] = reply.as_array()? else { return None };
    let port = port.as_count().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?;
    let told = |name: &str| {
        let text = rest.get(1).and_then(|pairs| pairs.field(name)).and_then(Reply::as_str);
        text.filter(|text| is_host(text)).map(str::to_owned)
    };
    match endpoint {
        // It knows no address of its own that clients could use: the one that was asked.
        Reply::Nil => Some(Address { port, ..asked.clone() }),
        endpoint => match endpoint.as_str()? {
            "" => Some(Address { port, ..asked.clone() }),
            // It should announce a host name and has none.
            "?" => told("ip").map(|ip| Address::new(&ip, port)),
            host if is_host(host) => Some(Address { name: told("hostname"), ..Address::new(host, port) }),
            _ => None,
        },
    }
}

/// Where a node says that a key is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Redirection {
    /// The slot has this master from now on.
    Moved(Address),
    /// The slot is being moved to this node, and this key is there already, or nowhere.
    Ask(Address),
}

impl Redirection {
    /// Reads a refusal such as `MOVED 3999 127.0.0.1:6381` of the node that was asked at `asked`.
    pub(super) fn read(error: &str, asked: &Address) -> Option<Self> {
        let mut words = error.split(' ');
        let (kind, _slot, target) = (words.next()?, words.next()?, words.next()?);
        let (host, port) = target.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let address = match host {
            "" | "?" => Address { port, ..asked.clone() },
            host if is_host(host) => Address::new(host, port),
            _ => return None,
        };
        match kind {
            "MOVED" => Some(Self::Moved(address)),
            "ASK" => Some(Self::Ask(address)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.as_bytes().to_vec())
    }

    fn node_of(endpoint: Reply, port: i64, pairs: &[&str]) -> Reply {
        let pairs = pairs.iter().map(|word| text(word)).collect();
        Reply::Array(vec![endpoint, Reply::Integer(port), text("id"), Reply::Array(pairs)])
    }

    fn range(first: i64, last: i64, nodes: Vec<Reply>) -> Reply {
        Reply::Array([Reply::Integer(first), Reply::Integer(last)].into_iter().chain(nodes).collect())
    }

    #[test]
    fn a_slot_is_the_checksum_of_the_key_or_of_what_is_in_braces() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS, "nothing in the first braces");
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
    }

    #[test]
    fn the_map_tells_the_master_of_each_slot_and_the_name_for_its_certificate() {
        let asked = Address { name: Some("seed.example".to_owned()), ..Address::new("10.0.0.9", 6379) };
        let reply = Reply::Array(vec![
            range(
                0,
                99,
                vec![node_of(text("10.0.0.1"), 7_001, &["hostname", "one.example"]), node_of(text("r"), 1, &[])],
            ),
            range(100, 199, vec![node_of(text("two.example"), 7_002, &["ip", "10.0.0.2"])]),
            range(200, 299, vec![node_of(Reply::Nil, 7_003, &[])]),
            range(300, 399, vec![node_of(text("?"), 7_004, &["ip", "10.0.0.4"])]),
            range(400, 499, vec![node_of(text("?"), 7_005, &[])]),
            range(500, 599, vec![node_of(text("bad host"), 7_006, &[])]),
        ]);
        let map = SlotMap::read(&reply, &asked).unwrap();
        let named = |host: &str, port, name: Option<&str>| Address {
            name: name.map(str::to_owned),
            ..Address::new(host, port)
        };
        for (slot, master) in [
            (99, Some(named("10.0.0.1", 7_001, Some("one.example")))),
            (100, Some(named("two.example", 7_002, None))),
            (200, Some(named("10.0.0.9", 7_003, Some("seed.example")))),
            (300, Some(named("10.0.0.4", 7_004, None))),
            (400, None),
            (500, None),
            (600, None),
        ] {
            assert_eq!(map.master_of(slot), master.as_ref(), "{slot}");
        }
        assert_eq!(map.nodes().count(), 5);
        assert_eq!(map.known(Address::new("10.0.0.1", 7_001)).name.as_deref(), Some("one.example"));
    }

    #[test]
    fn what_is_no_map_is_refused() {
        let asked = Address::new("one", 1);
        let good = || node_of(text("a"), 1, &[]);
        for reply in [
            Reply::Nil,
            Reply::Oversized,
            text("OK"),
            Reply::Array(vec![Reply::Nil]),
            Reply::Array(vec![range(5, 4, vec![good()])]),
            Reply::Array(vec![range(0, 16_384, vec![good()])]),
            Reply::Array(vec![range(-1, 3, vec![good()])]),
            Reply::Array(vec![range(0, 1, vec![])]),
            Reply::Array((0..600).map(|n| range(n, n, vec![node_of(text(&format!("h{n}")), 1, &[])])).collect()),
        ] {
            assert!(SlotMap::read(&reply, &asked).is_err(), "{reply:?}");
        }
        assert_eq!(SlotMap::read(&Reply::Array(Vec::new()), &asked), Ok(SlotMap::default()));
    }

    #[test]
    fn a_redirection_names_a_node() {
        let asked = Address::new("seed", 6_379);
        for (error, redirection) in [
            ("MOVED 3999 127.0.0.1:6381", Some(Redirection::Moved(Address::new("127.0.0.1", 6_381)))),
            ("ASK 3999 two.example:6381", Some(Redirection::Ask(Address::new("two.example", 6_381)))),
            ("MOVED 3999 ::1:6381", Some(Redirection::Moved(Address::new("::1", 6_381)))),
            ("MOVED 3999 :6381", Some(Redirection::Moved(Address::new("seed", 6_381)))),
            ("MOVED 3999 ?:6381", Some(Redirection::Moved(Address::new("seed", 6_381)))),
            ("MOVED 3999 a b:6381", None),
            ("MOVED 3999 host:0", None),
            ("MOVED 3999", None),
            ("MOVED", None),
            ("ERR no", None),
            ("", None),
        ] {
            assert_eq!(Redirection::read(error, &asked), redirection, "{error}");
        }
    }
}
