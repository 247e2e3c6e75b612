//! Which Events are told.

use super::*;

#[test]
fn events_tell_of_bad_turns_and_of_the_way_back_once_each() {
    let good = measured(9, 1.0, false);
    let well = status(&known(Ok(&good)));
    let refused = unknown(Reason::ConnectionRefused);
    let down = next_status(&Known { failure: Some(&refused), ..known(Err(refused.clone())) }, &well, at(200));
    let told = announcements(&well, &down);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].warning && told[0].reason == "ConnectionRefused" && told[0].note == "ConnectionRefused it is");
    assert_eq!(announcements(&down, &down), []);
    let back = announcements(&down, &well);
    assert_eq!((back.len(), back[0].warning, back[0].reason.as_str()), (1, false, "Ready"));
    let fresh = status(&Known { workload: present(2, 0), ..known(Ok(&good)) });
    assert_eq!(announcements(&ProjectionStatus::default(), &fresh), [], "every workload begins without a ready worker");
}

#[test]
fn a_change_of_workers_is_told_with_its_reason() {
    let good = measured(9, 1.0, false);
    let (two, five) = (status(&known(Ok(&good))), status(&Known { workload: present(5, 5), ..known(Ok(&good)) }));
    let told = announcements(&two, &five);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].reason, "Scaled");
    assert_eq!(told[0].note, "asked for 5 workers instead of 2 (required: 2 workers: because)");
    // More are asked for than run: no success.
    let waiting = status(&Known { workload: present(5, 2), ..known(Ok(&good)) });
    assert_eq!(
        announcements(&two, &waiting)[0].note,
        "asked for 5 workers instead of 2, 2 of them ready now (required: 2 workers: because)"
    );
    let one = status(&Known { workload: present(1, 1), ..known(Ok(&good)) });
    assert!(announcements(&two, &one)[0].note.starts_with("asked for 1 worker instead of 2 ("));
    // The model's number has nothing to do with it.
    let off = status(&Known { suspended: Some(SuspendedBy::Spec), workload: present(0, 0), ..known(Ok(&good)) });
    assert_eq!(announcements(&two, &off)[0].note, "asked for 0 workers instead of 2 (suspended)");
    let back = next_status(&known(Ok(&good)), &off, at(200));
    assert_eq!(announcements(&off, &back)[0].note, "asked for 2 workers instead of 0 (not suspended any more)");
}
