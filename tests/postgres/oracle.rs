//! What a table keeps against the model.

use dlock::store::{Ledger, PostgresAddress, PostgresRegister};

use crate::law::differential::{WITHIN, agree};
use crate::support::Store;
use crate::support::postgres::{has_pooler, has_postgres};

fn a_table_agrees_with_the_model(store: &Store, cases: u32) {
    let address = PostgresAddress::parse(store.url(), "/".as_ref()).expect("a URL");
    let table = Ledger::new(PostgresRegister::new(&address, true, WITHIN));
    store.run(&["setup"]).is(0, "", "");
    let forget = || drop(store.sql("DELETE FROM TABLE; DELETE FROM TABLE_life"));
    agree(&table, &|now| table.register().set_clock(Some(now)), &forget, cases);
}

#[test]
fn a_table_agrees_with_the_model_directly() {
    if has_postgres() {
        a_table_agrees_with_the_model(&Store::on_postgres(), 40);
    }
}

#[test]
fn a_table_agrees_with_the_model_through_a_pooler() {
    if has_postgres() && has_pooler() {
        a_table_agrees_with_the_model(&Store::on_pooler(), 20);
    }
}
