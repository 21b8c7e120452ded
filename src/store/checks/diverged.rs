//! Trainings that went wrong: what they leave in the rows.

use rlhfd_domain::Divergence;
use rlhfd_domain::gate::OnFail;

use super::flow::Flow;
use super::*;
use crate::WentWrong;

fn wrong() -> WentWrong {
    let message = "step 2: the mean loss is 50\ntry: less".to_owned();
    WentWrong { divergence: Divergence::LossExploded, message }
}

/// An iteration whose update goes wrong.
fn went_wrong(flow: &mut Flow, on: OnFail) {
    let number = flow.start(4, 2);
    let unit = flow.bench.unit(flow.run, &format!("{number:04}/train"));
    let attempt = flow.bench.store.lease_unit(unit.id, None, NOW).unwrap().id;
    flow.bench.store.unit_diverged((unit.id, attempt), &wrong(), on, NOW).unwrap();
}

#[test]
fn an_update_that_went_wrong_ends_its_iteration_and_the_head_stays() {
    let mut flow = Flow::new(8);
    let head = flow.bench.store.run(flow.run).unwrap().head;
    went_wrong(&mut flow, OnFail::KeepHead);
    let run = flow.bench.store.run(flow.run).unwrap();
    assert_eq!((run.head, run.paused), (head, None));
    let unit = flow.bench.unit(flow.run, "0001/train");
    assert_eq!((unit.state.as_str(), unit.deaths), ("set_aside", 0));
    let reason = unit.reason.unwrap();
    assert!(
        reason.starts_with("loss_exploded: step 2: the mean loss is 50; most likely"),
        "{reason}"
    );
    let attempts = flow.bench.number(
        "SELECT count(*) FROM attempts WHERE outcome = 'failed' AND cause = 'loss_exploded'
         AND counted = 0",
    );
    let open = "SELECT count(*) FROM units WHERE state IN ('open', 'running')";
    let ended = "SELECT count(*) FROM iterations i JOIN iteration_totals USING (run_id, iteration)
                 WHERE divergence = 'loss_exploded' AND ended_ms IS NOT NULL
                 AND cancelled_ms IS NULL AND policy_out IS NULL";
    assert_eq!((attempts, flow.bench.number(open), flow.bench.number(ended)), (1, 0, 1));
    // The next one begins with the same head, and may pause the run.
    went_wrong(&mut flow, OnFail::Pause);
    let run = flow.bench.store.run(flow.run).unwrap();
    assert_eq!(run.head, head);
    let paused = run.paused.unwrap().reason;
    assert!(paused.contains("the update of iteration 2 went wrong (loss_exploded"), "{paused}");
    let told = "SELECT count(*) FROM events WHERE kind = 'update_diverged' AND level = 'error'";
    assert_eq!(flow.bench.number(told), 2);
    assert_eq!(flow.bench.store.integrity().unwrap(), Vec::<String>::new());
}
