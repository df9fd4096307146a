//! Images: how they are named, whether they are there, and when they are pulled.

use super::{SEEN, ends, push, steps};
use crate::side::Kind;
use crate::spec::{Spec, Until, pod, scenario};
use serde_json::json;
use std::net::TcpListener;
use std::sync::LazyLock;

/// A registry that takes connections and says nothing.
static SILENT: LazyLock<TcpListener> = LazyLock::new(|| TcpListener::bind("127.0.0.1:0").unwrap());

pub fn specs() -> Vec<Spec> {
    let with_image = |name: &str, until: Until, image: &'static str| {
        pod(name, until, move |_, pod| pod["spec"]["containers"][0]["image"] = json!(image))
    };
    vec![
        pod("image-missing", Until::Waiting("ImagePullBackOff"), |run, pod| {
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, "missing:v1"));
        }),
        pod("image-tag-missing", Until::Waiting("ImagePullBackOff"), |run, pod| {
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, "workload:v9"));
        }),
        with_image("image-registry-away", Until::Waiting("ImagePullBackOff"), "127.0.0.1:1/never/there:v1"),
        with_image("image-name-bad", Until::Waiting("InvalidImageName"), "Not/An:Image:Name"),
        pod("image-never-missing", Until::Waiting("ErrImageNeverPull"), |_, pod| {
            pod["spec"]["containers"][0]["image"] = json!("127.0.0.1:1/never/there:v1");
            pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
        }),
        scenario("image-by-digest", |run| async move {
            let mut pod = run.pod(&[]);
            ends(&mut pod, "exit:0");
            // It is there under its tag.
            let tagged = format!("{}-tagged", run.name);
            pod["metadata"]["name"] = json!(tagged);
            run.create(&pod).await?;
            run.until_of(&tagged, &Until::Ended).await?;
            let digest = run.scene.digest(run.kind, "workload", "v1");
            pod["metadata"]["name"] = json!(run.name);
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, &format!("workload@{digest}")));
            run.create(&pod).await?;
            run.until(&Until::Ended).await
        }),
        pod("image-always-pulled-once", Until::Ended, |_, pod| {
            ends(pod, "exit:0");
            pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        }),
        pod("image-always-pulled-for-each-run", Until::Restarted(1), |_, pod| {
            steps(pod, &[SEEN, "exit:3"]);
            pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        }),
        pod("image-of-one-container-missing", Until::Waiting("ImagePullBackOff"), |run, pod| {
            steps(pod, &["forever"]);
            let mut other = run.container("other", &["forever"]);
            other["image"] = json!(run.scene.image(run.kind, "missing:v1"));
            push(&mut pod["spec"], "containers", other);
        }),
        pod("image-pull-secret-missing", Until::Ended, |_, pod| {
            ends(pod, "exit:0");
            pod["spec"]["imagePullSecrets"] = json!([{"name": "not-there"}]);
        }),
        scenario("image-corrected", |run| async move {
            let mut pod = run.pod(&["forever"]);
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(run.kind, "missing:v1"));
            run.create(&pod).await?;
            run.until(&Until::Waiting("ImagePullBackOff")).await?;
            // Somebody corrects the name.
            run.patch(json!({"spec": {"containers": [{"name": "main", "image": run.image()}]}})).await?;
            run.until(&Until::Ready).await
        }),
        scenario("deleted-while-pulling", |run| async move {
            let mut pod = run.pod(&["forever"]);
            let image = format!("{}/silent:v1", SILENT.local_addr().unwrap());
            pod["spec"]["containers"][0]["image"] = json!(image);
            run.create(&pod).await?;
            run.until(&Until::Event("Pulling")).await?;
            run.delete(None).await
        }),
        scenario("image-of-the-other-kind", |run| async move {
            let other = if run.kind == Kind::Linux { Kind::Wasm } else { Kind::Linux };
            let mut pod = run.pod(&["forever"]);
            pod["spec"]["containers"][0]["image"] = json!(run.scene.image(other, "workload:v1"));
            run.create(&pod).await?;
            run.until(&Until::Event("Failed")).await
        }),
    ]
}
