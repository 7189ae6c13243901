//! The pages of [`super::http`]: metrics for Prometheus, health and readiness.
//!
//! Names and labels are stable: dashboards and alerts are made of them. Labels are ids of PBXs, addresses
//! and interfaces of ours, and words that this program knows; never anything that a message brings.

use std::fmt;
use std::time::Duration;

use hyper::{Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use sip_ebpf::reason::{Reason, Way};
use sip_ebpf::tables::PbxState;

use super::http::{Page, plain, typed};
use super::status::{Memory, Parts, STATES, Status, state_name, unix};
use crate::core::bans::Why;
use crate::core::counters::Event;
use crate::fastpath::{EventCounts, Mode};

/// For how long the heart may stand still before the daemon counts as sick: many times the distance of two
/// beats, so that a burst of work is no illness.
const STILL: Duration = Duration::from_secs(5);

/// What a page says.
pub fn page(page: Page, parts: &mut Parts<'_>) -> Response<String> {
    match page {
        Page::Metrics => match parts.status() {
            Ok(status) => typed(StatusCode::OK, prometheus_text::CONTENT_TYPE, text(status)),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "no metrics");
                failed(&format!("{error:#}"))
            }
        },
        Page::Health => verdict(health(parts)),
        Page::Ready => verdict(readiness(parts)),
    }
}

/// What a page says that cannot be made.
pub fn failed(why: &str) -> Response<String> {
    plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n"))
}

/// What every page says when the daemon is at its end.
pub fn ended() -> Response<String> {
    verdict(Err("the daemon has ended".to_owned()))
}

fn verdict(verdict: Result<String, String>) -> Response<String> {
    match verdict {
        Ok(text) => plain(StatusCode::OK, text + "\n"),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

/// Whether the daemon works at all: who is not healthy is to be started again.
fn health(parts: &Parts<'_>) -> Result<String, String> {
    let still = parts.course.beaten.elapsed();
    if still > STILL {
        return Err(format!("no heartbeat for {} s", still.as_secs()));
    }
    Ok("healthy".to_owned())
}

/// Whether the daemon takes calls: who is not ready is to be left out.
fn readiness(parts: &Parts<'_>) -> Result<String, String> {
    if parts.course.stopping {
        return Err("stopping: new calls are refused".to_owned());
    }
    let views = parts.dispatcher.views();
    let active = views.iter().filter(|view| view.state == PbxState::Active).count();
    if active == 0 {
        let each = views.iter().map(|view| {
            let state = state_name(view.state);
            match &view.reason {
                Some(reason) => format!("; {} is {state}: {reason}", view.id),
                None => format!("; {} is {state}", view.id),
            }
        });
        return Err(format!("no PBX takes calls{}", each.collect::<String>()));
    }
    Ok(format!("ready, {active} of {} PBXs active", views.len()))
}

/// The text that Prometheus reads, version 0.0.4.
fn text(status: Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(status));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

impl Collector for Status {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        self.process(&mut out)?;
        self.kernel_half(&mut out)?;
        self.daemon_half(&mut out)?;
        self.pbxs(&mut out)?;
        self.sockets(&mut out)?;
        self.bans(&mut out)?;
        match &self.memory {
            Some(memory) => memory.encode(&mut out),
            None => Ok(()),
        }
    }
}

impl Status {
    fn process(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.info("sipline_build", "What runs", [("version", env!("CARGO_PKG_VERSION"))])?;
        out.seconds(
            "process_start_time",
            "When the daemon started, since 1970",
            [([], unix(self.course.started_at).as_secs_f64())],
        )?;
        let beaten = unix(self.at).saturating_sub(self.course.beaten.elapsed());
        out.seconds(
            "sipline_heartbeat_timestamp",
            "When the daemon's heart beat last, since 1970; it beats four times a second",
            [([], beaten.as_secs_f64())],
        )?;
        out.gauge(
            "sipline_stopping",
            "Whether new calls are refused because the daemon is about to end",
            [([], u64::from(self.course.stopping))],
        )
    }

    fn kernel_half(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let modes = [Mode::Native, Mode::Generic, Mode::Off];
        let name = |mode| match mode {
            Mode::Native => "native",
            Mode::Generic => "generic",
            Mode::Off => "off",
        };
        let one_hot = modes.map(|mode| ([("mode", name(mode))], u64::from(mode == self.xdp.mode)));
        out.gauge("sipline_xdp_mode", "How packets reach the kernel program: 1 for one", one_hot)?;
        out.gauge(
            "sipline_xdp_interface_mode",
            "The same by interface",
            self.xdp.interfaces.iter().flat_map(|at| {
                [Mode::Native, Mode::Generic].map(|mode| {
                    let labels = [("interface", &at.interface[..]), ("mode", name(mode))];
                    (labels, u64::from(mode == at.mode))
                })
            }),
        )?;
        out.counter(
            "sipline_xdp_write_failures",
            "Writes to the kernel's tables that failed, to be made good later",
            [([], self.xdp.write_failures)],
        )?;
        out.counter(
            "sipline_kernel_packets",
            "Packets by the reason that they left the kernel program for, and the way",
            Reason::ALL.iter().map(|reason| {
                let way = match reason.way() {
                    Way::Sent => "sent",
                    Way::Up => "up",
                    Way::Drop => "drop",
                };
                ([("reason", reason.name()), ("way", way)], self.of_kernel(*reason))
            }),
        )?;
        let EventCounts { copied, uncopied, told, untold } = self.events;
        out.counter(
            "sipline_kernel_call_reports",
            "What the kernel had to tell of calls that it carries, by whether there was room for it",
            [([("report", "put")], told), ([("report", "ring_full")], untold)],
        )?;
        out.counter(
            "sipline_kernel_shadows",
            "INVITEs that the kernel has steered, by whether there was room for their copy",
            [([("copy", "put")], copied), ([("copy", "ring_full")], uncopied)],
        )
    }

    fn daemon_half(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let of = |event| self.daemon.of_event(event);
        out.counter(
            "sipline_daemon_datagrams_received",
            "Datagrams that came up to the daemon",
            [([], of(Event::Received))],
        )?;
        out.counter(
            "sipline_daemon_datagrams_sent",
            "Datagrams that the daemon sent, probes too",
            [([], of(Event::Sent))],
        )?;
        out.counter(
            "sipline_daemon_datagrams_unsent",
            "Datagrams that the daemon could not send",
            [
                ([("cause", "refused")], of(Event::SendFailed)),
                ([("cause", "socket_full")], of(Event::SendDropped)),
            ],
        )?;
        out.counter(
            "sipline_daemon_decisions",
            "Decisions of the daemon, by the reason as in the kernel",
            Reason::ALL
                .iter()
                .map(|reason| ([("reason", reason.name())], self.daemon.of_reason(*reason))),
        )?;
        out.counter(
            "sipline_daemon_events",
            "What else happened in the daemon",
            Event::ALL
                .iter()
                .filter(|event| !is_traffic(**event))
                .map(|event| ([("event", event.name())], of(*event))),
        )?;
        let mut classes = [("1xx", 0), ("2xx", 0), ("3xx", 0), ("4xx", 0), ("5xx", 0), ("6xx", 0)];
        let stateful = self.memory.iter().flat_map(|memory| &memory.done.replies);
        let stateful = stateful.map(|(code, times)| (*code, *times));
        for (code, times) in self.daemon.replies().chain(stateful) {
            let class = usize::from(code / 100).wrapping_sub(1);
            if let Some((_, all)) = classes.get_mut(class) {
                *all += times;
            }
        }
        out.counter(
            "sipline_daemon_replies",
            "Responses of the daemon's own, by class of the status code",
            classes.map(|(class, times)| ([("class", class)], times)),
        )
    }

    fn pbxs(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.gauge(
            "sipline_pbx_state",
            "What a PBX is used for: 1 for one state",
            self.backends.iter().flat_map(|pbx| {
                STATES.map(|state| {
                    ([("pbx", &pbx.id[..]), ("state", state)], u64::from(pbx.state == state))
                })
            }),
        )?;
        out.gauge(
            "sipline_pbx_weight",
            "A PBX's share of new calls",
            self.backends.iter().map(|pbx| ([("pbx", &pbx.id[..])], u64::from(pbx.weight))),
        )?;
        out.counter(
            "sipline_pbx_calls",
            "Calls placed at a PBX, by the half that placed them",
            self.backends.iter().flat_map(|pbx| {
                [("kernel", pbx.kernel_calls), ("daemon", pbx.daemon_calls)]
                    .map(|(half, calls)| ([("pbx", &pbx.id[..]), ("half", half)], calls))
            }),
        )?;
        out.gauge(
            "sipline_pbx_probe_failures",
            "Probes of a PBX in a row that failed",
            self.backends.iter().map(|pbx| ([("pbx", &pbx.id[..])], u64::from(pbx.failures))),
        )?;
        out.seconds(
            "sipline_pbx_probe_round_trip",
            "How long the last answered probe of a PBX took; nothing before the first",
            self.backends.iter().filter_map(|pbx| {
                let time = Duration::from_micros(pbx.round_trip_us?);
                Some(([("pbx", &pbx.id[..])], time.as_secs_f64()))
            }),
        )
    }

    fn bans(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.gauge(
            "sipline_bans",
            "Networks that are banned, by why",
            Why::ALL.iter().zip(self.bans.now).map(|(why, n)| ([("reason", why.name())], count(n))),
        )?;
        out.counter(
            "sipline_bans_made",
            "Bans that were made, by why",
            Why::ALL.iter().zip(self.bans.made).map(|(why, n)| ([("reason", why.name())], n)),
        )
    }

    fn sockets(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let named: Vec<_> =
            self.sockets.iter().map(|socket| (socket.address.to_string(), socket)).collect();
        out.counter(
            "sipline_socket_drops",
            "Datagrams lost because the daemon was too slow",
            named.iter().map(|(address, socket)| ([("address", &address[..])], socket.dropped)),
        )?;
        out.bytes(
            "sipline_socket_receive_buffer",
            "What a socket holds for the daemon at most",
            named
                .iter()
                .map(|(address, socket)| ([("address", &address[..])], socket.receive_buffer)),
        )
    }
}

impl Memory {
    fn encode(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        self.registrations(out)?;
        self.calls(out)?;
        self.store(out)
    }

    fn registrations(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.gauge(
            "sipline_registered_users",
            "Users who are registered",
            [([], count(self.users))],
        )?;
        out.gauge(
            "sipline_registered_contacts",
            "Contacts of users who are registered",
            [([], count(self.contacts))],
        )?;
        out.counter(
            "sipline_registers",
            "REGISTERs of phones that were carried out",
            [([], self.done.registered)],
        )?;
        let Self { done, asked, .. } = self;
        out.counter(
            "sipline_forked_registers",
            "REGISTERs of ours to PBXs, by whether there was any answer so far",
            [
                ([("result", "sent")], done.forked.saturating_sub(done.forked_unanswered)),
                ([("result", "unanswered")], done.forked_unanswered),
            ],
        )?;
        out.counter(
            "sipline_forked_challenges_unanswered",
            "Challenges of PBXs that could not be answered",
            [([], done.challenges_unanswered)],
        )?;
        out.counter(
            "sipline_digest_results",
            "What became of requests that had to have credentials",
            [
                ([("result", "right")], asked.passed),
                ([("result", "wrong")], asked.wrong),
                ([("result", "challenged")], asked.challenged),
                ([("result", "unavailable")], asked.unavailable),
            ],
        )
    }

    fn calls(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.gauge(
            "sipline_transactions",
            "Transactions that go on",
            [([], count(self.transactions))],
        )?;
        out.counter(
            "sipline_requests_shed",
            "Requests that were refused because too much goes on",
            [([("cause", "admission")], self.shed), ([("cause", "transactions")], self.done.full)],
        )?;
        out.counter(
            "sipline_transactions_ended_early",
            "Transactions that were only there for repetitions, and ended to make room",
            [([], self.done.ended_early)],
        )?;
        out.gauge(
            "sipline_calls_in_progress",
            "Calls that have a record and are not over",
            [([], count(self.calls))],
        )?;
        let recorded = &self.recorded;
        out.counter("sipline_calls_recorded", "Calls that have a record", [([], recorded.calls)])?;
        out.counter(
            "sipline_calls_unrecorded",
            "Calls without a record, because there was no room",
            [([], recorded.unrecorded)],
        )?;
        out.counter(
            "sipline_calls_limited",
            "Calls whose BYE was lost, closed by the limit",
            [([], recorded.limited)],
        )
    }

    fn store(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let Self { store, asked, .. } = self;
        out.counter(
            "sipline_cdrs_written",
            "Records of calls that the store has",
            [([], store.written_cdrs)],
        )?;
        out.gauge(
            "sipline_cdrs_queued",
            "Records of calls that wait for the store",
            [([], store.waiting_cdrs)],
        )?;
        out.counter(
            "sipline_cdrs_dropped",
            "Records of calls that are lost",
            [
                ([("cause", "queue_full")], store.refused_cdrs),
                ([("cause", "refused")], store.failed_cdrs),
            ],
        )?;
        out.gauge(
            "sipline_store_reachable",
            "Whether the database is there, as far as is known",
            [([], u64::from(store.connected))],
        )?;
        out.counter(
            "sipline_store_reconnects",
            "How often the database came back",
            [([], store.reconnects)],
        )?;
        out.gauge(
            "sipline_store_bindings_queued",
            "Changes of registrations that wait for the store",
            [([], store.waiting_bindings)],
        )?;
        out.counter(
            "sipline_store_questions",
            "Questions to the store for the secrets of a user",
            [
                ([("result", "asked")], asked.fetches.saturating_sub(asked.fetches_failed)),
                ([("result", "failed")], asked.fetches_failed),
            ],
        )?;
        out.gauge(
            "sipline_store_requests_waiting",
            "Requests that wait for the secrets of their user",
            [([], count(self.waiting))],
        )
    }
}

fn count(number: usize) -> u64 {
    number as u64
}

/// Events that have metrics of their own.
fn is_traffic(event: Event) -> bool {
    matches!(event, Event::Received | Event::Sent | Event::SendFailed | Event::SendDropped)
}

/// Labels of one sample.
type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Writes metrics; each with its samples.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: Labels<'_, N>,
    ) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    /// `_total` is put behind the name.
    fn counter<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        self.measure(name, help, None, samples)
    }

    /// `_seconds` is put behind the name.
    fn seconds<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, f64)>,
    ) -> fmt::Result {
        self.measure(name, help, Some(&Unit::Seconds), samples)
    }

    /// `_bytes` is put behind the name.
    fn bytes<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        self.measure(name, help, Some(&Unit::Bytes), samples)
    }

    fn measure<'l, V: EncodeGaugeValue, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
