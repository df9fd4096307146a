//! Logs by every flag of kubectl, and its other ways into a container.

use super::{SEEN, policy, push, steps};
use crate::spec::{Spec, Until, scenario};
use serde_json::json;

pub fn specs() -> Vec<Spec> {
    vec![
        scenario("logs-plain", |run| async move {
            let mut pod = run.pod(&[]);
            steps(&mut pod, &["lines:50", "sleep:1000", "error:to the error stream", SEEN, "print:last"]);
            policy(&mut pod, "Never");
            run.create(&pod).await?;
            run.until(&Until::Ended).await?;
            let name = run.name.clone();
            for flags in [
                &[][..],
                &["--tail=3"],
                &["--tail=0"],
                &["--tail=1000"],
                &["--limit-bytes=100"],
                &["--since=1h"],
                &["--since-time=2035-01-01T00:00:00Z"],
                &["-c", "main"],
                &["-c", "nobody"],
                &["--previous"],
                &["--prefix"],
                &["--follow"],
                &["--all-containers"],
                &["--ignore-errors"],
                &["--insecure-skip-tls-verify-backend"],
                &["--pod-running-timeout=1s"],
                &["--tail=2", "--limit-bytes=4"],
            ] {
                run.kubectl_fact(&[&["logs", &name], flags].concat()).await;
            }
            let timestamps = run.kubectl(&["logs", &name, "--timestamps"]).await;
            let timestamps = String::from_utf8_lossy(&timestamps.stdout).into_owned();
            let stamped = timestamps.lines().filter(|line| {
                line.split_once(' ')
                    .is_some_and(|(time, _)| time.len() >= 20 && time.starts_with("20") && time.contains('T'))
            });
            run.fact("lines with a time", stamped.count().to_string());
            Ok(())
        }),
        scenario("logs-of-what-does-not-run", |run| async move {
            let mut pod = run.pod(&["forever"]);
            pod["spec"]["initContainers"] = json!([run.container("first", &["print:of init", "forever"])]);
            run.create(&pod).await?;
            run.until(&Until::Waiting("PodInitializing")).await?;
            let running = |history: &crate::observation::History| {
                history
                    .last()
                    .is_some_and(|pod| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object())
            };
            run.recorder.wait_for(run.kind, &run.name, running).await?;
            for flags in [&["-c", "main"][..], &["-c", "first"], &["-c", "first", "--previous"], &["-c", "nobody"]] {
                run.kubectl_fact(&[&["logs", &run.name], flags].concat()).await;
            }
            Ok(())
        }),
        scenario("logs-of-a-missing-image", |run| async move {
            let mut pod = run.pod(&[]);
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, "missing:v1"));
            run.create(&pod).await?;
            run.until(&Until::Waiting("ImagePullBackOff")).await?;
            run.kubectl_fact(&["logs", &run.name]).await;
            Ok(())
        }),
        scenario("logs-odd", |run| async move {
            let mut pod = run.pod(&[]);
            steps(&mut pod, &["binary", "bytes:40000", "print:", "print:after the long line", "bytes:10", SEEN]);
            policy(&mut pod, "Never");
            run.create(&pod).await?;
            run.until(&Until::Ended).await?;
            for flags in [&[][..], &["--tail=1"], &["--tail=2"], &["--limit-bytes=20000"]] {
                let output = run.kubectl(&[&["logs", &run.name], flags].concat()).await;
                let mut text = String::new();
                let mut xs = 0;
                for byte in &output.stdout {
                    if *byte == b'x' {
                        xs += 1;
                        continue;
                    }
                    if std::mem::take(&mut xs) > 20 {
                        text.push_str("(many x)");
                    }
                    text.extend(std::ascii::escape_default(*byte).map(char::from));
                }
                let length = output.stdout.len();
                run.fact(
                    &format!("logs {}", flags.join(" ")),
                    format!("{length} bytes: {text}{}", "x".repeat(xs.min(20))),
                );
            }
            Ok(())
        }),
        scenario("logs-previous", |run| async move {
            let mut pod = run.pod(&[]);
            super::volume(&mut pod, "kept", json!({"emptyDir": {}}), json!({"mountPath": "/kept"}));
            steps(&mut pod, &["runs:/kept/runs=2", "forever"]);
            run.create(&pod).await?;
            let runs_again = |history: &crate::observation::History| {
                history.last().is_some_and(|pod| {
                    let container = &pod["status"]["containerStatuses"][0];
                    container["restartCount"] == 1 && container["state"]["running"].is_object()
                })
            };
            run.recorder.wait_for(run.kind, &run.name, runs_again).await?;
            run.kubectl_fact(&["logs", &run.name]).await;
            run.kubectl_fact(&["logs", &run.name, "--previous"]).await;
            Ok(())
        }),
        scenario("logs-of-two-containers", |run| async move {
            let mut pod = run.pod(&["print:of main", "forever"]);
            push(&mut pod["spec"], "containers", run.container("other", &["print:of other", "forever"]));
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            for flags in [&[][..], &["-c", "other"], &["-c", "other", "--prefix"]] {
                run.kubectl_fact(&[&["logs", &run.name], flags].concat()).await;
            }
            Ok(())
        }),
        scenario("input-closed", |run| async move {
            let mut pod = run.pod(&["print:before", "input", "print:after", SEEN]);
            policy(&mut pod, "Never");
            run.create(&pod).await?;
            run.until(&Until::Ended).await?;
            run.kubectl_fact(&["logs", &run.name]).await;
            Ok(())
        }),
        scenario("input-open", |run| async move {
            let mut pod = run.pod(&["print:before", "input"]);
            pod["spec"]["containers"][0]["stdin"] = json!(true);
            run.create(&pod).await?;
            run.until(&Until::Ready).await?;
            run.kubectl_fact(&["logs", &run.name]).await;
            Ok(())
        }),
        scenario("ways-into-a-container", |run| async move {
            run.create(&run.pod(&["print:x", "forever"])).await?;
            run.until(&Until::Ready).await?;
            for arguments in [
                &["exec", run.name.as_str(), "--", "/program", "print:inside"][..],
                &["cp", &format!("{}:/dev/null", run.name), "/dev/null"],
                &["port-forward", &run.name, "0:1", "--pod-running-timeout=1s", "--address=127.0.0.1", "--v=0"],
            ] {
                if arguments[0] == "port-forward" {
                    continue;
                }
                let output = run.kubectl(arguments).await;
                let answer = if output.status.success() { "succeeds" } else { "fails" };
                run.fact(&format!("kubectl {}", arguments[0]), answer);
            }
            Ok(())
        }),
    ]
}
