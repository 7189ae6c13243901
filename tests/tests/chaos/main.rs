//! What goes wrong while calls run: the daemon is killed, replaced and reloaded, the database goes away, a PBX dies or
//! is overloaded. Every call is counted, with XDP native, generic and off, and each that may be lost is named.

mod database;
mod kill;
mod pbx;
mod reload;
mod replace;

use database::the_database_may_be_away;
use kill::{calls_outlive_the_daemon, phones_outlive_the_daemon};
use pbx::{
    a_dead_host_costs_only_its_own_calls, a_dead_program_costs_only_its_own_calls,
    an_overloaded_pbx_costs_no_call,
};
use reload::a_reload_costs_no_call;
use replace::another_program_costs_nothing;

sipline_tests::in_each_mode! {
    calls_outlive_the_daemon
    phones_outlive_the_daemon
    another_program_costs_nothing
    a_reload_costs_no_call
    the_database_may_be_away
    a_dead_program_costs_only_its_own_calls
    a_dead_host_costs_only_its_own_calls
    an_overloaded_pbx_costs_no_call
}
