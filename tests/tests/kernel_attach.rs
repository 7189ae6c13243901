//! The loader: attached, pinned, adopted, and everything as it was afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aya::programs::XdpMode as Flags;
use sip_ebpf::Reason;
use sip_ebpf::tables::{PbxState, flag, source};
use sip_user::config::{Loops, Xdp, XdpMode};
use sip_user::fastpath::object::{self, Build, Options};
use sip_user::fastpath::{self, Fastpath, Mode};
use sipline_tests::fixtures::Message;
use sipline_tests::fixtures::frame::Frame;
use sipline_tests::fixtures::net;
use sipline_tests::fixtures::world::{KEY, PBX1, PBX2, PHONE, PROXY, endpoint, pbx};

const FORWARDING: &str = "/proc/sys/net/ipv4/conf/lo/forwarding";

/// A directory for pins, removed at the end with all that is in it, also after a failure.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(format!("/sys/fs/bpf/sl-test-{}-{number}", std::process::id()).into())
    }

    fn pins(&self) -> Vec<String> {
        let mut found = Vec::new();
        for version in fs::read_dir(&self.0).into_iter().flatten() {
            for pin in fs::read_dir(version.unwrap().path()).unwrap() {
                found.push(pin.unwrap().file_name().into_string().unwrap());
            }
        }
        found.sort();
        found
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let config = Xdp { pin: Some(self.0.clone()), ..Xdp::default() };
        let _ = fastpath::detach(&config);
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config(directory: &Directory, mode: XdpMode) -> Xdp {
    Xdp {
        mode,
        interfaces: net::PORTS.iter().map(|port| (*port).to_owned()).collect(),
        pin: Some(directory.0.clone()),
        call_buckets: 1024,
        ..Xdp::default()
    }
}

/// Fills the tables as a daemon with one trusted network and two PBXs does.
fn fill(fastpath: &mut dyn Fastpath) {
    let local = sip_ebpf::insert::local(endpoint(PROXY));
    fastpath.set_locals(&[(endpoint(PROXY), local)]).unwrap();
    fastpath.set_sources(&[("10.10.1.0/24".parse().unwrap(), source::TRUSTED)]).unwrap();
    fastpath.set_pbx(0, pbx(PBX1, PbxState::Active)).unwrap();
    fastpath.set_pbx(1, pbx(PBX2, PbxState::Active)).unwrap();
    let mut schedule = sip_ebpf::tables::Schedule { len: 2, ..Default::default() };
    schedule.slots[1] = 1;
    fastpath.set_schedule(&schedule).unwrap();
    fastpath.heartbeat(Duration::from_secs(60)).unwrap();
    fastpath.set_config(flag::KEEPALIVES | flag::STEER).unwrap();
}

/// Mode and id of the program on a port, as `ip` tells.
fn attached(port: &str) -> Option<(Mode, u64)> {
    let output = std::process::Command::new("ip")
        .args(["-j", "-d", "link", "show", "dev", port])
        .output()
        .expect("ip, of the package iproute2");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON of ip");
    let xdp = links[0].get("xdp")?;
    let mode = match xdp["mode"].as_u64()? {
        1 => Mode::Native,
        2 => Mode::Generic,
        _ => return None,
    };
    Some((mode, xdp["prog"]["id"].as_u64()?))
}

fn all_attached() -> Vec<Option<Mode>> {
    net::PORTS.iter().map(|port| attached(port).map(|(mode, _)| mode)).collect()
}

fn forwarding() -> String {
    fs::read_to_string(FORWARDING).unwrap().trim().to_owned()
}

/// A network with forwarding of `lo` off, as on most machines.
fn network<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    net::with(|| {
        fs::write(FORWARDING, "0").unwrap();
        body()
    })
}

/// Puts a frame on the wire so that it arrives by `ph`.
fn inject(frame: &Frame) {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: all zero is a value of this struct of integers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = net::index("phx") as i32;
    let bytes = frame.bytes();
    // SAFETY: frame and address are as long as is said; the socket is closed once.
    unsafe {
        let sent = libc::sendto(
            socket,
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
        libc::close(socket);
    }
}

fn options(call: &str) -> Frame {
    Frame::new(PHONE, PROXY, Message::request("OPTIONS", PHONE, call))
}

/// Waits until a counter has a value; the wire takes its time.
fn wait_for(fastpath: &mut dyn Fastpath, reason: Reason, value: u64) {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let now = fastpath.counters().unwrap()[reason as usize];
        if now == value {
            return;
        }
        if Instant::now() > end {
            let all = fastpath.counters().unwrap();
            let some: Vec<_> = Reason::ALL.iter().zip(all).filter(|(_, n)| *n != 0).collect();
            panic!("{reason:?} is {now}, not {value}: {some:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_mode_and_build_attaches_and_leaves_nothing() {
    for loops in [Loops::Auto, Loops::MayGoto, Loops::BpfLoop] {
        for (wanted, got) in [
            (XdpMode::Native, Mode::Native),
            (XdpMode::Generic, Mode::Generic),
            (XdpMode::Auto, Mode::Native),
        ] {
            network(|| {
                let directory = Directory::new();
                let config = Xdp { loops, ..config(&directory, wanted) };
                let mut fastpath = fastpath::open(&config, KEY).unwrap();
                assert_eq!(all_attached(), [Some(got); 3]);
                assert_eq!(fastpath.mode(), got);
                assert_eq!(fastpath.attachments().len(), 3);
                assert_eq!(forwarding(), "1");
                let described = fastpath.describe();
                let build = if loops == Loops::BpfLoop { "bpf_loop" } else { "may_goto" };
                assert!(described.contains(build), "{described}");

                inject(&options("before"));
                wait_for(&mut *fastpath, Reason::NotOurs, 1);
                fill(&mut *fastpath);
                inject(&options("after"));
                wait_for(&mut *fastpath, Reason::OptionsAnswered, 1);

                fastpath.close(false).unwrap();
                assert_eq!(all_attached(), [None; 3]);
                assert!(!directory.0.exists());
                assert_eq!(forwarding(), "0");
            });
        }
    }
}

#[test]
fn without_pins_everything_ends_with_the_process() {
    network(|| {
        let directory = Directory::new();
        let config = Xdp { pin: None, ..config(&directory, XdpMode::Native) };
        let fastpath = fastpath::open(&config, KEY).unwrap();
        assert_eq!(all_attached(), [Some(Mode::Native); 3]);
        drop(fastpath);
        assert_eq!(all_attached(), [None; 3]);
        assert!(!directory.0.exists());
        // To keep needs pins: it is detached all the same.
        let fastpath = fastpath::open(&config, KEY).unwrap();
        fastpath.close(true).unwrap();
        assert_eq!(all_attached(), [None; 3]);
    });
}

#[test]
fn forwarding_that_was_on_stays_on() {
    network(|| {
        fs::write(FORWARDING, "1").unwrap();
        let directory = Directory::new();
        fastpath::open(&config(&directory, XdpMode::Native), KEY).unwrap().close(false).unwrap();
        assert_eq!(forwarding(), "1");
    });
}

/// A daemon that dies leaves its program at work; the next one takes over in place.
#[test]
fn a_daemon_that_dies_is_followed_by_one_that_adopts() {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        network(|| {
            let directory = Directory::new();
            let config = config(&directory, mode);
            let mut first = fastpath::open(&config, KEY).unwrap();
            fill(&mut *first);
            let before = attached("ph").unwrap();
            drop(first);
            assert_eq!(attached("ph"), Some(before), "the program is still there");
            inject(&options("alone"));

            let mut second = fastpath::open(&config, KEY).unwrap();
            let after = attached("ph").unwrap();
            assert_eq!(after.0, before.0);
            assert_ne!(after.1, before.1, "the program was exchanged");
            assert!(second.describe().contains("adopted"), "{}", second.describe());
            wait_for(&mut *second, Reason::OptionsAnswered, 1);
            inject(&options("with-the-old-tables"));
            wait_for(&mut *second, Reason::OptionsAnswered, 2);

            // The new daemon knows one PBX and one address; what else stood there is gone.
            let port = sipline_tests::fixtures::subject::at([10, 10, 0, 1], 5070);
            let local = sip_ebpf::insert::local(endpoint(port));
            second.set_locals(&[(endpoint(port), local)]).unwrap();
            second.set_pbx(0, pbx(PBX1, PbxState::Active)).unwrap();
            second.set_config(flag::KEEPALIVES | flag::STEER).unwrap();
            inject(&options("to-the-old-address"));
            wait_for(&mut *second, Reason::NotOurs, 1);
            inject(&Frame::new(PBX2, port, Message::invite(PBX2, "of-an-old-PBX")));
            wait_for(&mut *second, Reason::Untrusted, 1);

            second.close(false).unwrap();
            assert_eq!(all_attached(), [None; 3]);
            assert!(!directory.0.exists());
            assert_eq!(forwarding(), "0", "it was off before the first daemon");
        });
    }
}

#[test]
fn keep_leaves_the_program_and_detach_removes_it() {
    network(|| {
        let directory = Directory::new();
        let config = config(&directory, XdpMode::Native);
        let mut fastpath = fastpath::open(&config, KEY).unwrap();
        fill(&mut *fastpath);
        fastpath.close(true).unwrap();
        assert_eq!(all_attached(), [Some(Mode::Native); 3]);
        let links: Vec<String> =
            directory.pins().into_iter().filter(|pin| pin.starts_with("link-")).collect();
        assert_eq!(links, ["link-p1", "link-p2", "link-ph"]);

        let mut interfaces = fastpath::detach(&config).unwrap();
        interfaces.sort();
        assert_eq!(interfaces, ["p1", "p2", "ph"]);
        assert_eq!(all_attached(), [None; 3]);
        assert!(!directory.0.exists());
        assert_eq!(forwarding(), "0");
        assert!(fastpath::detach(&config).unwrap().is_empty(), "a second time there is nothing");
    });
}

/// A kept program does not answer for a daemon that is gone.
#[test]
fn a_kept_program_answers_no_options() {
    network(|| {
        let directory = Directory::new();
        let config = config(&directory, XdpMode::Native);
        let mut fastpath = fastpath::open(&config, KEY).unwrap();
        fill(&mut *fastpath);
        fastpath.close(true).unwrap();
        inject(&options("nobody"));
        let mut next = fastpath::open(&config, KEY).unwrap();
        wait_for(&mut *next, Reason::HeartbeatStale, 1);
        next.close(false).unwrap();
    });
}

#[test]
fn another_mode_makes_the_links_anew() {
    network(|| {
        let directory = Directory::new();
        drop(fastpath::open(&config(&directory, XdpMode::Generic), KEY).unwrap());
        assert_eq!(all_attached(), [Some(Mode::Generic); 3]);
        // Auto takes what is there.
        let auto = fastpath::open(&config(&directory, XdpMode::Auto), KEY).unwrap();
        assert_eq!(auto.mode(), Mode::Generic);
        drop(auto);
        drop(fastpath::open(&config(&directory, XdpMode::Native), KEY).unwrap());
        assert_eq!(all_attached(), [Some(Mode::Native); 3]);
        let generic = fastpath::open(&config(&directory, XdpMode::Generic), KEY).unwrap();
        assert_eq!(all_attached(), [Some(Mode::Generic); 3]);
        generic.close(false).unwrap();
    });
}

#[test]
fn tables_of_another_size_are_made_anew() {
    network(|| {
        let directory = Directory::new();
        let mut first = fastpath::open(&config(&directory, XdpMode::Native), KEY).unwrap();
        fill(&mut *first);
        inject(&options("counted"));
        wait_for(&mut *first, Reason::OptionsAnswered, 1);
        drop(first);
        let larger = Xdp { call_buckets: 4096, ..config(&directory, XdpMode::Native) };
        let mut second = fastpath::open(&larger, KEY).unwrap();
        let calls = second.calls().unwrap();
        assert!(calls.bucket(4095).is_some());
        assert!(calls.bucket(4096).is_none());
        assert_eq!(second.counters().unwrap()[Reason::OptionsAnswered as usize], 1, "kept");
        fill(&mut *second);
        inject(&options("again"));
        wait_for(&mut *second, Reason::OptionsAnswered, 2);
        drop(second);
        // What was pinned is the new one.
        let third = fastpath::open(&larger, KEY).unwrap();
        third.close(false).unwrap();
        assert!(!directory.0.exists());
    });
}

#[test]
fn an_interface_that_leaves_the_configuration_is_detached() {
    network(|| {
        let directory = Directory::new();
        drop(fastpath::open(&config(&directory, XdpMode::Native), KEY).unwrap());
        let fewer = Xdp {
            interfaces: vec!["ph".into(), "p1".into()],
            ..config(&directory, XdpMode::Native)
        };
        let fastpath = fastpath::open(&fewer, KEY).unwrap();
        assert_eq!(all_attached(), [Some(Mode::Native), Some(Mode::Native), None]);
        fastpath.close(false).unwrap();
    });
}

#[test]
fn an_interface_that_was_made_anew_is_attached_anew() {
    network(|| {
        let directory = Directory::new();
        drop(fastpath::open(&config(&directory, XdpMode::Native), KEY).unwrap());
        net::ip(
            "link del p2\nlink add p2 type veth peer name p2x\nlink set p2x up\nlink set p2 up\n",
        );
        let fastpath = fastpath::open(&config(&directory, XdpMode::Native), KEY).unwrap();
        assert_eq!(all_attached(), [Some(Mode::Native); 3]);
        fastpath.close(false).unwrap();
    });
}

#[test]
fn somebody_elses_program_is_left_alone_and_named() {
    network(|| {
        let directory = Directory::new();
        let options = Options::new(64);
        let mut other = object::maps(Build::MayGoto, &options).unwrap();
        let program = object::program(&mut other, object::DROP).unwrap();
        program.attach("p2", Flags::Skb).unwrap();
        let there = attached("p2");
        let error = fastpath::open(&config(&directory, XdpMode::Native), KEY).err().unwrap();
        let error = format!("{error:#}");
        for part in ["p2", "bench_drop", &format!("id {}", there.unwrap().1), "generic"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(attached("p2"), there);
        assert_eq!((attached("ph"), attached("p1")), (None, None), "nothing is half done");
        // Auto goes on without.
        let off = fastpath::open(&config(&directory, XdpMode::Auto), KEY).unwrap();
        assert_eq!(off.mode(), Mode::Off);
        assert!(off.describe().contains("bench_drop"), "{}", off.describe());
    });
}

/// A port whose frames do not fit a page: native is refused with advice, auto takes generic.
#[test]
fn a_large_mtu_is_explained() {
    network(|| {
        let directory = Directory::new();
        net::ip("link set phx mtu 9000\nlink set ph mtu 9000\n");
        let error = fastpath::open(&config(&directory, XdpMode::Native), KEY).err().unwrap();
        let error = format!("{error:#}");
        assert!(error.contains("ph") && error.contains("mtu 1500"), "{error}");
        assert_eq!(all_attached(), [None; 3]);
        let auto = fastpath::open(&config(&directory, XdpMode::Auto), KEY).unwrap();
        assert_eq!(auto.mode(), Mode::Generic);
        let modes: Vec<Mode> = auto.attachments().iter().map(|a| a.mode).collect();
        assert_eq!(modes, [Mode::Generic, Mode::Native, Mode::Native]);
        auto.close(false).unwrap();
    });
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    network(|| {
        let directory = Directory::new();
        let fails = |change: fn(&mut Xdp)| {
            let mut config = config(&directory, XdpMode::Native);
            change(&mut config);
            format!("{:#}", fastpath::open(&config, KEY).err().unwrap())
        };
        assert!(fails(|c| c.interfaces.clear()).contains("xdp.interfaces is empty"));
        let error = fails(|c| c.interfaces = vec!["eth77".into()]);
        assert!(error.contains("no interface eth77") && error.contains("ph"), "{error}");
        let error = fails(|c| c.pin = Some("/run/sipline-no-bpffs".into()));
        assert!(error.contains("mount -t bpf"), "{error}");
        assert!(!Path::new("/run/sipline-no-bpffs").exists());
        assert_eq!(all_attached(), [None; 3]);
        // Off asks for nothing.
        let off = fastpath::open(&config(&directory, XdpMode::Off), KEY).unwrap();
        assert_eq!(off.mode(), Mode::Off);
    });
}

/// Kernel logs reach the daemon's own, but only when they are switched on.
#[test]
fn logs_of_the_kernel() {
    for (log, mode) in [(true, XdpMode::Native), (false, XdpMode::Native)] {
        network(|| {
            let lines = Arc::new(Mutex::new(Vec::new()));
            let writer = Lines(Arc::clone(&lines));
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_writer(move || writer.clone())
                .finish();
            let _guard = tracing::subscriber::set_default(subscriber);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let directory = Directory::new();
                let config = Xdp { log, ..config(&directory, mode) };
                let mut fastpath = fastpath::open(&config, KEY).unwrap();
                fill(&mut *fastpath);
                inject(&options("logged"));
                wait_for(&mut *fastpath, Reason::OptionsAnswered, 1);
                tokio::time::sleep(Duration::from_millis(300)).await;
                fastpath.close(false).unwrap();
            });
            let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
            assert_eq!(text.contains("sipline::kernel"), log, "{text}");
        });
    }
}

#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
