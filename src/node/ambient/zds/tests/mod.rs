//! Tests with a simulated ztunnel, for everything that a real one does not do.

mod fake;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use super::book::Progress;
use super::*;
use crate::sys::seqpacket::Connection;
use fake::{Side, Space, Ztunnel, announce, info, until};

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);
const HELLO: &[u8] = b"\x08\x01";
const DONE: &[u8] = b"\x0a\x00";

#[tokio::test(flavor = "current_thread")]
async fn a_ztunnel_gets_a_snapshot_and_then_what_happens() {
    let (side, own) = (Side::new(LONG), Space::own());
    let mut a = announce(side.book(), "a", &own);
    side.book().expect(&"b".into(), info("b"));
    side.book().complete();
    let ztunnel = side.connect(Some(HELLO)).await;
    let add = |uid: &str| format!("add {uid} {}", own.inode());
    ztunnel.take(&[&add("a")]).await;
    assert_eq!(until(&mut a, |p| *p != Progress::Waiting).await, Progress::Taken);
    // The second is still looked for, so nothing is said to be complete.
    assert!(tokio::time::timeout(SHORT, ztunnel.told()).await.is_err());
    assert_eq!(side.book().ztunnels(), (1, 0));
    side.book().not_found(&"b".into());
    ztunnel.take(&["keep b", "snapshot"]).await;
    let mut b = announce(side.book(), "b", &own);
    ztunnel.take(&[&add("b")]).await;
    assert_eq!(until(&mut b, |p| *p != Progress::Waiting).await, Progress::Taken);
    assert_eq!(side.book().ztunnels(), (1, 1));
    // The same again is nothing new.
    announce(side.book(), "a", &own);
    side.book().remove(&"a".into());
    assert_eq!(ztunnel.told().await, "del a");
    // Until it has let go, nobody goes on.
    assert!(tokio::time::timeout(SHORT, side.book().let_go(&"a".into())).await.is_err());
    ztunnel.say(DONE).await;
    tokio::time::timeout(LONG, side.book().let_go(&"a".into())).await.unwrap();
    drop(ztunnel.end);
    tokio::time::timeout(LONG, ztunnel.task).await.unwrap().unwrap();
    assert_eq!(side.book().ztunnels(), (0, 0));
    assert!(side.counted("ambient_acks_total{request=\"add\",result=\"done\"} 2"));
    assert!(side.counted("ambient_disconnects_total{cause=\"closed\"} 1"));
    assert!(side.counted("ambient_ztunnels 0"));
}

#[tokio::test(flavor = "current_thread")]
async fn looking_for_namespaces_does_not_hold_a_snapshot_up_for_ever() {
    let side = Side::new(LONG);
    side.book().expect(&"a".into(), info("a"));
    side.book().complete();
    let ztunnel = side.connect(Some(HELLO)).await;
    assert!(tokio::time::timeout(SHORT, ztunnel.told()).await.is_err());
    side.book().search_is_over();
    ztunnel.take(&["keep a", "snapshot"]).await;
}

#[tokio::test(flavor = "current_thread")]
async fn every_ztunnel_gets_everything_and_one_that_hangs_is_closed() {
    let (side, own) = (Side::new(Duration::from_secs(1)), Space::own());
    let add = format!("add a {}", own.inode());
    side.book().complete();
    let (old, new) = (side.connect(Some(HELLO)).await, side.connect(Some(HELLO)).await);
    old.take(&["snapshot"]).await;
    new.take(&["snapshot"]).await;
    let mut a = announce(side.book(), "a", &own);
    assert_eq!((old.told().await, new.told().await), (add.clone(), add.clone()));
    // One is enough to go on; the other one has its deadline.
    new.say(DONE).await;
    assert_eq!(until(&mut a, |p| *p != Progress::Waiting).await, Progress::Taken);
    // Its acknowledgement is late: nobody could tell to what it belongs.
    tokio::time::timeout(LONG, old.task).await.unwrap().unwrap();
    assert!(old.end.send(DONE, None).await.is_err());
    assert_eq!(side.book().ztunnels(), (1, 1));
    assert!(side.counted("ambient_disconnects_total{cause=\"late\"} 1"));
    // What one has not answered does not count against what the other has.
    assert_eq!(*a.borrow(), Progress::Taken);
    side.book().remove(&"a".into());
    new.take(&["del a"]).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_refusal_is_told_and_tried_again() {
    let (side, own) = (Side::new(LONG), Space::own());
    side.book().complete();
    let ztunnel = side.connect(Some(HELLO)).await;
    ztunnel.take(&["snapshot"]).await;
    let mut a = announce(side.book(), "a", &own);
    let add = format!("add a {}", own.inode());
    assert_eq!(ztunnel.told().await, add);
    // With its backtrace it is longer than what ztunnel itself would read.
    ztunnel.refuse(&format!("failed to bind: address in use\n{}", "  0: backtrace\n".repeat(4000))).await;
    let refused = until(&mut a, |p| *p != Progress::Waiting).await;
    assert_eq!(refused, Progress::Refused("failed to bind: address in use".into()));
    ztunnel.take(&[&add]).await;
    assert_eq!(until(&mut a, |p| *p == Progress::Taken).await, Progress::Taken);
    assert!(side.counted("ambient_acks_total{request=\"add\",result=\"refused\"} 1"));
    // What one ztunnel has, another one's refusal does not take away.
    let other = side.connect(Some(HELLO)).await;
    assert_eq!(other.told().await, add);
    other.refuse("no").await;
    assert_eq!(other.told().await, "snapshot");
    assert_eq!(*a.borrow(), Progress::Taken);
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_that_comes_back_is_taken_if_it_was_not_let_go_of() {
    let (side, own) = (Side::new(LONG), Space::own());
    side.book().complete();
    let ztunnel = side.connect(Some(HELLO)).await;
    let (uid, add) = ("a".into(), |uid: &str| format!("add {uid} {}", own.inode()));
    let mut a = announce(side.book(), "a", &own);
    ztunnel.take(&[&add("a"), "snapshot"]).await;
    until(&mut a, |p| *p == Progress::Taken).await;
    // It leaves and comes back while ztunnel is busy with another one.
    announce(side.book(), "b", &own);
    assert_eq!(ztunnel.told().await, add("b"));
    side.book().remove(&uid);
    let leaving = side.book().let_go(&uid);
    tokio::pin!(leaving);
    assert!(tokio::time::timeout(SHORT, &mut leaving).await.is_err());
    side.book().expect(&uid, info("a"));
    tokio::time::timeout(LONG, leaving).await.unwrap();
    let again = announce(side.book(), "a", &own);
    assert_eq!(*again.borrow(), Progress::Taken);
    ztunnel.say(DONE).await;
    // It was told of neither; now it is let go of, and comes back while ztunnel does that.
    side.book().remove(&uid);
    assert_eq!(ztunnel.told().await, "del a");
    side.book().expect(&uid, info("a"));
    let mut again = announce(side.book(), "a", &own);
    assert_eq!(*again.borrow(), Progress::Waiting);
    ztunnel.say(DONE).await;
    ztunnel.take(&[&add("a")]).await;
    assert_eq!(until(&mut again, |p| *p != Progress::Waiting).await, Progress::Taken);
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_ztunnel_had_that_is_gone_another_one_can_refuse() {
    let (side, own) = (Side::new(LONG), Space::own());
    side.book().complete();
    let add = format!("add a {}", own.inode());
    let mut a = announce(side.book(), "a", &own);
    let (old, new) = (side.connect(Some(HELLO)).await, side.connect(Some(HELLO)).await);
    old.take(&[&add, "snapshot"]).await;
    until(&mut a, |p| *p == Progress::Taken).await;
    assert_eq!(new.told().await, add);
    new.refuse("in use").await;
    new.take(&["snapshot"]).await;
    assert_eq!(*a.borrow(), Progress::Taken, "the old one has it");
    drop(old.end);
    tokio::time::timeout(LONG, old.task).await.unwrap().unwrap();
    // That a ztunnel is gone says nothing, nor that one goes while it is told of the pod.
    assert_eq!(new.told().await, add);
    drop(new.end);
    tokio::time::timeout(LONG, new.task).await.unwrap().unwrap();
    assert_eq!((side.book().ztunnels(), a.borrow().clone()), ((0, 0), Progress::Taken));
    let next = side.connect(Some(HELLO)).await;
    while next.told().await != add {
        next.say(DONE).await;
    }
    next.refuse("in use").await;
    assert_eq!(until(&mut a, |p| *p != Progress::Taken).await, Progress::Refused("in use".into()));
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_over_which_ztunnel_ends_does_not_keep_the_others_out() {
    let (side, own) = (Side::new(LONG), Space::own());
    let (add_a, add_b) = (format!("add a {}", own.inode()), format!("add b {}", own.inode()));
    let mut a = announce(side.book(), "a", &own);
    let mut b = announce(side.book(), "b", &own);
    side.book().complete();
    // In the middle of a snapshot, again and again.
    let mut seen: Vec<String> = Vec::new();
    while !(seen.contains(&"keep a".into()) && seen.contains(&add_b) && seen.contains(&"snapshot".into())) {
        assert!(seen.len() < 1000, "{seen:?}");
        let ztunnel = side.connect(Some(HELLO)).await;
        loop {
            let told = ztunnel.told().await;
            seen.push(told.clone());
            if told == add_a {
                break;
            }
            ztunnel.say(DONE).await;
        }
        let Ztunnel { end, task } = ztunnel;
        drop(end);
        task.await.unwrap();
    }
    assert_eq!(until(&mut b, |p| *p == Progress::Taken).await, Progress::Taken, "{seen:?}");
    let Progress::Refused(why) = until(&mut a, |p| *p != Progress::Waiting).await else { panic!() };
    assert!(why.contains("lost while it was told of the pod"), "{why}");
    // It is tried again, and a ztunnel that takes it has it.
    let ztunnel = side.connect(Some(HELLO)).await;
    while ztunnel.told().await != add_a {
        ztunnel.say(DONE).await;
    }
    ztunnel.say(DONE).await;
    assert_eq!(until(&mut a, |p| *p == Progress::Taken).await, Progress::Taken);
}

#[tokio::test(flavor = "current_thread")]
async fn whoever_does_not_keep_to_the_protocol_is_let_go_of() {
    for (hello, cause) in [
        (None, "greeting"),
        (Some(&b"\xff\xff\xff"[..]), "greeting"),
        (Some(b"\x08\x02"), "greeting"),
        (Some(b"\x08\x00"), "greeting"),
        (Some(&[b'x'; LONGER]), "greeting"),
    ] {
        let side = Side::new(SHORT);
        side.connect(hello).await.ended().await;
        assert_eq!(side.book().ztunnels(), (0, 0));
        assert!(side.counted(&format!("ambient_disconnects_total{{cause=\"{cause}\"}} 1")));
    }
    const LONGER: usize = super::message::LONGEST_RESPONSE + 1;
    let own = Space::own();
    // What is no acknowledgement, or none that came in time; two of them; one too early.
    let garbage: [(&[&[u8]], &str); 6] = [
        (&[], "late"),
        (&[b"\xff"], "nonsense"),
        (&[b"\x12\x00"], "nonsense"),
        (&[&[b'x'; LONGER]], "nonsense"),
        (&[HELLO], "nonsense"),
        (&[DONE, DONE, DONE], "nonsense"),
    ];
    for (packets, cause) in garbage {
        let side = Side::new(SHORT);
        let mut progress = announce(side.book(), "a", &own);
        let ztunnel = side.connect(Some(HELLO)).await;
        assert_eq!(ztunnel.told().await, format!("add a {}", own.inode()));
        for packet in packets {
            // The connection may be closed at the first already.
            let _ = ztunnel.end.send(packet, None).await;
        }
        ztunnel.ended().await;
        assert!(side.counted(&format!("ambient_disconnects_total{{cause=\"{cause}\"}} 1")), "{packets:?}");
        let taken = packets.first() == Some(&DONE);
        let now = until(&mut progress, |p| *p != Progress::Waiting).await;
        assert_eq!(now == Progress::Taken, taken, "{now:?}");
    }
    // A ztunnel that does not take the end of its snapshot is about to end itself.
    let side = Side::new(LONG);
    side.book().complete();
    let ztunnel = side.connect(Some(HELLO)).await;
    assert_eq!(ztunnel.told().await, "snapshot");
    ztunnel.refuse("SnapshotSent received already").await;
    ztunnel.ended().await;
    assert!(side.counted("ambient_disconnects_total{cause=\"snapshot\"} 1"));
}

#[tokio::test(flavor = "current_thread")]
async fn the_descriptor_is_the_pods_namespace_and_is_closed_after_the_ack() {
    let side = Side::new(LONG);
    let space = Space::another();
    assert_eq!(space.held(), 0);
    announce(side.book(), "a", &space);
    side.book().complete();
    // The book holds one as long as the pod is there.
    assert_eq!(space.held(), 1);
    let ztunnel = side.connect(Some(HELLO)).await;
    let (_, descriptors) = ztunnel.packet().await.unwrap();
    let meta = File::from(descriptors[0].try_clone().unwrap()).metadata().unwrap();
    assert_eq!((meta.dev(), meta.ino()), space.place().identity);
    drop(descriptors);
    // The pod goes while ztunnel has not answered: what is in flight is let go of after the ack.
    side.book().remove(&"a".into());
    assert_eq!(space.held(), 1);
    ztunnel.say(DONE).await;
    ztunnel.take(&["del a", "snapshot"]).await;
    side.book().let_go(&"a".into()).await;
    assert_eq!(space.held(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn another_namespace_is_told_as_such() {
    let (side, own, another) = (Side::new(LONG), Space::own(), Space::another());
    side.book().complete();
    let mut first = announce(side.book(), "a", &own);
    let ztunnel = side.connect(Some(HELLO)).await;
    ztunnel.take(&[&format!("add a {}", own.inode()), "snapshot"]).await;
    until(&mut first, |p| *p == Progress::Taken).await;
    // A pod's sandbox was made anew: what was said of the one before does not count.
    let mut second = announce(side.book(), "a", &another);
    assert_eq!(*second.borrow(), Progress::Waiting);
    ztunnel.take(&[&format!("add a {}", another.inode())]).await;
    assert_eq!(until(&mut second, |p| *p != Progress::Waiting).await, Progress::Taken);
    assert_ne!(own.inode(), another.inode());
}

#[tokio::test(flavor = "current_thread")]
async fn a_ztunnel_dials_the_socket_whatever_was_left_there() {
    let folder = std::env::temp_dir().join(format!("podweir-zds-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let path = folder.join("deep/ztunnel.sock");
    drop(listen(&path).unwrap());
    assert!(path.exists());
    // The one before was killed.
    let listener = listen(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let side = Side::new(LONG);
    side.book().complete();
    tokio::spawn(serve(listener, side.shared.clone()));
    let end = Connection::connect(&path).unwrap();
    end.send(HELLO, None).await.unwrap();
    let ztunnel = Ztunnel { end, task: tokio::spawn(async {}) };
    ztunnel.take(&["snapshot"]).await;
    fs::write(folder.join("file"), "precious").unwrap();
    assert!(matches!(listen(&folder.join("file")), Err(ListenError::Taken { .. })));
    assert!(matches!(listen(&folder.join("x".repeat(120))), Err(ListenError::Io { .. })));
    fs::remove_dir_all(folder).unwrap();
}

/// Shows that a snapshot does not look at every pod once for each pod; it is no measurement.
#[tokio::test(flavor = "current_thread")]
async fn a_snapshot_of_many_pods_is_a_request_a_pod() {
    let (side, own) = (Side::new(LONG), Space::own());
    for n in 0..500 {
        announce(side.book(), &n.to_string(), &own);
    }
    side.book().complete();
    let started = Instant::now();
    let ztunnel = side.connect(Some(HELLO)).await;
    let mut adds = 0;
    while ztunnel.told().await != "snapshot" {
        adds += 1;
        ztunnel.say(DONE).await;
    }
    eprintln!("500 pods in {:?}", started.elapsed());
    assert_eq!(adds, 500);
}
