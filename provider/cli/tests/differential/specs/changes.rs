//! Changes of a pod that is there.

use super::{SEEN, steps};
use crate::spec::{Spec, Until, scenario};
use serde_json::json;
use std::time::Instant;

pub fn specs() -> Vec<Spec> {
    vec![
        scenario("image-changed-while-running", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            let image = run.scene.image(run.kind, "workload:v2");
            run.patch(json!({"spec": {"containers": [{"name": "main", "image": image}]}})).await?;
            let restarted = |history: &crate::observation::History| {
                history.last().is_some_and(|pod| {
                    let container = &pod["status"]["containerStatuses"][0];
                    container["restartCount"] == 1 && container["state"]["running"].is_object()
                })
            };
            run.recorder.wait_for(run.kind, &run.name, restarted).await?;
            Ok(())
        }),
        scenario("image-changed-in-back-off", |run| async move {
            let mut pod = run.pod(&[]);
            steps(&mut pod, &[SEEN, "exit:3"]);
            run.create(&pod).await?;
            run.until(&Until::Restarted(1)).await?;
            let started = Instant::now();
            let image = run.scene.image(run.kind, "workload:v2");
            run.patch(json!({"spec": {"containers": [{"name": "main", "image": image}]}})).await?;
            let runs = |history: &crate::observation::History| {
                history.last().is_some_and(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 2)
            };
            run.recorder.wait_for(run.kind, &run.name, runs).await?;
            run.fact("time to the next run", crate::spec::took(started.elapsed()));
            run.until(&Until::Restarted(3)).await
        }),
        scenario("labels-changed", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            run.patch(json!({"metadata": {"labels": {"added": "yes"}, "annotations": {"noted": "yes"}}})).await?;
            Ok(())
        }),
        scenario("deadline-set-while-running", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            run.patch(json!({"spec": {"activeDeadlineSeconds": 5}})).await?;
            run.until(&Until::Ended).await
        }),
        scenario("ephemeral-container", |run| async move {
            run.create(&run.pod(&["forever"])).await?;
            run.until(&Until::Ready).await?;
            let image = run.image();
            let arguments = [
                "debug",
                &run.name,
                "--image",
                &image,
                "--container=look",
                "--profile=general",
                "--",
                "/program",
                "print:x",
            ];
            let output = run.kubectl(&arguments).await;
            run.fact("kubectl debug", if output.status.success() { "accepted" } else { "refused" });
            Ok(())
        }),
    ]
}
