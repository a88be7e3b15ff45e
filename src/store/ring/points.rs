//! Which node of a ring has a key: consistent hashing (Karger and others, "Consistent Hashing and Random Trees", 1997) with
//! the points of Ketama (R. Jones, libketama, 2007). Each node stands at many points of a circle of 2^32, and has the
//! keys from the point before each of these on. A node that comes takes keys from all others, and nobody else's move.
//!
//! The points of a node are those of MD5("HOST:PORT-0"), MD5("HOST:PORT-1") and so on, four numbers of 32 bits in each,
//! the lowest byte first; a key stands at the first number of its own. Ketama has 160 points for each of equal nodes,
//! with which one of eight has a third more keys than the others easily. This has 1,024, and all else as there.

use std::sync::OnceLock;

use md5::{Digest, Md5};

/// How many points each node has.
const POINTS: usize = 1024;

/// Where the nodes of a ring stand on the circle.
#[derive(Debug)]
pub(super) struct Points {
    /// In their own order: of two nodes at the same point the first one has the key.
    names: Vec<String>,
    /// The place of each of them among the names that were given.
    given: Vec<usize>,
    /// All points of the first node, and then those of the next ones. To work these out takes longer than to look at all of
    /// them for a key, and to sort them would take longer yet.
    all: OnceLock<Vec<u32>>,
}

impl Points {
    pub(super) fn new(names: &[String]) -> Self {
        let mut given: Vec<usize> = (0..names.len()).collect();
        given.sort_by_key(|at| &names[*at]);
        Self { names: given.iter().map(|at| names[*at].clone()).collect(), given, all: OnceLock::new() }
    }

    /// The place of the node that has a key, among the names that were given.
    pub(super) fn node_of(&self, key: &str) -> usize {
        let key = numbers(key)[0];
        let (mut nearest, mut shortest) = (0, u32::MAX);
        for (at, point) in self.all().iter().enumerate() {
            let distance = point.wrapping_sub(key);
            if distance < shortest {
                (nearest, shortest) = (at, distance);
            }
        }
        self.given[nearest / POINTS]
    }

    fn all(&self) -> &[u32] {
        self.all.get_or_init(|| {
            let digests = |name| (0..POINTS / 4).flat_map(move |number| numbers(&format!("{name}-{number}")));
            self.names.iter().flat_map(digests).collect()
        })
    }
}

/// The four numbers of a text's digest.
fn numbers(text: &str) -> [u32; 4] {
    let digest: [u8; 16] = Md5::digest(text).into();
    let number = |at: usize| u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]]);
    [number(0), number(4), number(8), number(12)]
}

#[cfg(test)]
mod tests {
    use super::Points;

    /// The keys that the nodes `10.0.0.1:6379` to `10.0.0.COUNT:6379` have of `deploy/0` to `deploy/9999`.
    fn spread(count: usize) -> Vec<usize> {
        let names: Vec<String> = (1..=count).map(|number| format!("10.0.0.{number}:6379")).collect();
        let points = Points::new(&names);
        (0..10_000).map(|number| points.node_of(&format!("deploy/{number}"))).collect()
    }

    /// What a ring was once it must be for ever: these are by another implementation, in Python, that sorts the points and
    /// searches them.
    #[test]
    fn keys_are_where_another_implementation_finds_them() {
        let names = ["a.example:6379", "b.example:6379", "c.example:7000", "[2001:db8::1]:6379"];
        let points = Points::new(&names.map(str::to_owned));
        let owners = [
            ("nightly", 0),
            ("deploy/prod", 3),
            ("backup", 1),
            ("größer", 2),
            ("{x}%", 3),
            ("a", 1),
            ("report 1", 1),
            ("schema", 0),
            // It stands behind the last point, and so before the first one.
            ("wrap3734", 1),
        ];
        for (key, node) in owners {
            assert_eq!(points.node_of(key), node, "{key}");
        }
    }

    #[test]
    fn keys_are_spread_evenly_and_a_new_node_takes_its_share_from_all_others() {
        // As the other implementation has it: of 10,000 keys no node has more than 1.09 times its share.
        let known: [&[usize]; 3] =
            [&[3430, 3218, 3352], &[2134, 1913, 1895, 2057, 2001], &[1331, 1185, 1150, 1355, 1229, 1186, 1248, 1316]];
        for sizes in known {
            let count = sizes.len();
            let (before, after) = (spread(count), spread(count + 1));
            let of = |node: usize| before.iter().filter(|owner| **owner == node).count();
            assert_eq!((0..count).map(of).collect::<Vec<_>>(), sizes);
            let moved: Vec<usize> = (0..10_000).filter(|at| before[*at] != after[*at]).collect();
            assert!(moved.iter().all(|at| after[*at] == count), "keys move between nodes that were there before");
            let share = 10_000 / (count + 1);
            assert!((share * 85..=share * 115).contains(&(moved.len() * 100)), "{count}: {} of {share}", moved.len());
        }
    }

    #[test]
    fn the_order_of_the_list_says_nothing() {
        let names = |order: [u8; 4]| order.map(|number| format!("h{number}:6379"));
        let (one, other) = (names([1, 2, 3, 4]), names([3, 1, 4, 2]));
        let (points, turned) = (Points::new(&one), Points::new(&other));
        for number in 0..1_000 {
            let key = format!("k{number}");
            assert_eq!(one[points.node_of(&key)], other[turned.node_of(&key)], "{key}");
        }
    }
}
