//! A share of a group of servers on which other tests stand.

use crate::support::redis::{REDIS, Server, shared_cluster, shared_sentinels};
use crate::support::{Store, has};

#[test]
fn a_store_on_a_shared_group_sees_only_what_is_its_own() {
    if !has(REDIS) {
        return;
    }
    let see = |make: fn() -> Store, server: fn(&str) -> &'static Server| {
        let (one, other) = (make(), make());
        let name = |part: &str| format!("{}:{{k}}:{part}", one.prefix());
        for part in ["record", "rest"] {
            server(&name(part)).ask(&["SET", &name(part), "1"]);
        }
        assert!(one.keeps("k") && !one.is_untouched() && one.leftovers() == [name("rest")]);
        assert!(!other.keeps("k") && other.is_untouched() && other.leftovers() == [""; 0]);
    };
    see(Store::on_sentinels, |_| shared_sentinels().master());
    see(Store::on_cluster, |name| &shared_cluster().nodes[shared_cluster().master_of(name)]);
}
