//! Which node of a ring has a key: consistent hashing (Karger and others, "Consistent Hashing and Random Trees", 1997) with
//! the points of Ketama (R. Jones, libketama, 2007). Each node stands at many points of a circle of 2^32, and has the
//! keys from the point before each of these on. A node that comes takes keys from all others, and nobody else's move.
//!
//! The points of a node are those of MD5("HOST:PORT-0"), MD5("HOST:PORT-1") and so on, four numbers of 32 bits in each,
//! the lowest byte first; a key stands at the first number of its own. Ketama has 160 points for each of equal nodes,
//! with which one of eight has a third more keys than the others easily. This has 1,024, and all else as there.

use std::sync::OnceLock;

use md5::{Digest, Md5};

/// Digests for each node, with four points each.
const DIGESTS: u32 = 256;

/// Where the nodes of a ring stand on the circle.
#[derive(Debug)]
pub(super) struct Points {
    names: Vec<String>,
    /// Each point and the place of its node in the order of names. To work these out takes longer than to look for a key
    /// among all of them, and to sort them would take longer yet.
    points: OnceLock<Vec<(u32, usize)>>,
    /// The place of a node among the names that were given.
    given: Vec<usize>,
}

impl Points {
    pub(super) fn new(names: &[String]) -> Self {
        let mut given: Vec<usize> = (0..names.len()).collect();
        given.sort_by_key(|at| &names[*at]);
        Self { names: given.iter().map(|at| names[*at].clone()).collect(), points: OnceLock::new(), given }
    }

    /// The place of the node that has a key, among the names that were given.
    pub(super) fn node_of(&self, key: &str) -> usize {
        let at = numbers(key)[0];
        // Of two nodes at the same point the name that comes first has it.
        let nearest = self.points().iter().min_by_key(|(point, node)| (point.wrapping_sub(at), *node));
        nearest.map_or(0, |(_, node)| self.given[*node])
    }

    fn points(&self) -> &[(u32, usize)] {
        self.points.get_or_init(|| {
            let of_node = |(node, name): (usize, &String)| {
                let name = name.clone();
                let digests = (0..DIGESTS).map(move |number| numbers(&format!("{name}-{number}")));
                digests.flatten().map(move |point| (point, node))
            };
            self.names.iter().enumerate().flat_map(of_node).collect()
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

    fn sizes(owners: &[usize], count: usize) -> Vec<usize> {
        (0..count).map(|node| owners.iter().filter(|owner| **owner == node).count()).collect()
    }

    #[test]
    fn keys_are_spread_evenly() {
        for count in [3, 5, 8] {
            let largest = sizes(&spread(count), count).into_iter().max().expect("there are nodes");
            assert!(largest * count * 100 <= 115 * 10_000, "{count}: {largest}");
        }
    }

    #[test]
    fn a_new_node_takes_its_share_from_all_others_and_nothing_else_moves() {
        for count in [3, 5, 8] {
            let (before, after) = (spread(count), spread(count + 1));
            let moved: Vec<usize> = (0..10_000).filter(|at| before[*at] != after[*at]).collect();
            assert!(moved.iter().all(|at| after[*at] == count), "{count}");
            let share = 10_000 / (count + 1);
            assert!((share * 85..=share * 115).contains(&(moved.len() * 100)), "{count}: {} of {share}", moved.len());
        }
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
        assert_eq!(sizes(&spread(3), 3), [3430, 3218, 3352]);
        assert_eq!(sizes(&spread(5), 5), [2134, 1913, 1895, 2057, 2001]);
        assert_eq!(sizes(&spread(8), 8), [1331, 1185, 1150, 1355, 1229, 1186, 1248, 1316]);
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
