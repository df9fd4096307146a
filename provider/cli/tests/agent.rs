//! Registration with Akri's Agent: a stand-in that serves the real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]
mod fixture;

use akri_krustlet_discovery::agent::RegistrationSocket;
use akri_krustlet_discovery::registration::AGENT_SOCKET;
use akri_proto::v0::registration_server::{Registration, RegistrationServer};
use akri_proto::v0::{Empty, RegisterDiscoveryHandlerRequest};
use fixture::{DEADLINE, HandlerPod, Node, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::{Request, Response, Status};

async fn next(agent: &mut RegistrationSocket) -> RegisterDiscoveryHandlerRequest {
    tokio::time::timeout(DEADLINE, agent.next()).await.expect("a registration comes").unwrap()
}

fn make_handlers_directory(node: &Node) -> std::path::PathBuf {
    let directory = node.path("akri");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn each_handler_is_registered_once_in_each_life_of_the_agent() {
    let mut node = Node::prepare();
    let directory = make_handlers_directory(&node);
    node.add(&HandlerPod::new("one", "one", "debug-echo"));
    let mut pod = HandlerPod::new("two", "two", "debug-echo");
    pod.env.push(("DISCOVERY_HANDLER_SHARED", "false"));
    node.add(&pod);
    node.run();
    node.wait_for_running("one");
    node.wait_for_running("two");
    // No Agent so far. It starts, and starts again, five times.
    for life in 0..5 {
        let mut agent = RegistrationSocket::serve(&directory).unwrap();
        let mut registered = [next(&mut agent).await, next(&mut agent).await];
        registered.sort_by(|a, b| a.name.cmp(&b.name));
        let [one, two] = &registered;
        assert_eq!((one.name.as_str(), one.shared), ("one", true), "life {life}");
        assert_eq!((two.name.as_str(), two.shared), ("two", false), "life {life}");
        assert_eq!(one.endpoint, node.socket("one").to_str().unwrap());
        // Streams that come and go, and other files in the directory, are no reason to register again.
        drop(node.first_list("one", "descriptions: [a]").await);
        std::fs::write(directory.join("other"), "x").unwrap();
        drop(node.first_list("two", "descriptions: [a]").await);
        assert_eq!(agent.try_next(), None, "life {life}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_keeps_crashing_is_not_registered_again() {
    let mut node = Node::prepare();
    let mut agent = RegistrationSocket::serve(&make_handlers_directory(&node)).unwrap();
    let mut pod = HandlerPod::fault("crash", "exit3");
    pod.env.extend([("FAULT_AT", "start"), ("DISCOVERY_HANDLER_SHARED", "false")]);
    node.add(&pod);
    node.run();
    let registered = next(&mut agent).await;
    assert_eq!((registered.name.as_str(), registered.shared), ("crash", false));
    node.wait_for_pod("crash", "backing off", |pod| pod.to_string().contains("CrashLoopBackOff"));
    assert!(node.socket("crash").exists(), "its streams would stay open");
    assert_eq!(agent.try_next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_registered_when_its_socket_answers() {
    let mut node = Node::prepare();
    let mut agent = RegistrationSocket::serve(&make_handlers_directory(&node)).unwrap();
    node.add(&HandlerPod::new("echo", "echo", "debug-echo"));
    node.run();
    assert_eq!(next(&mut agent).await.name, "echo");
    // At once, without waiting for anything: the module is compiled, the socket served.
    let mut stream = node.discover("echo", "descriptions: [a]").await.unwrap();
    assert_eq!(fixture::next_ids(&mut stream).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_and_a_directory_that_somebody_removes_are_made_again() {
    let mut node = Node::start();
    node.assert_undisturbed().await;
    std::fs::remove_file(node.socket("debugEcho")).unwrap();
    node.wait_for_socket("debugEcho");
    node.assert_undisturbed().await;
    // The node may put a socket back into the directory that is being removed.
    assert!(wait_for(|| std::fs::remove_dir_all(node.path("akri")).is_ok()));
    node.wait_for_socket("debugEcho");
    node.assert_undisturbed().await;
    let mut agent = RegistrationSocket::serve(&node.path("akri")).unwrap();
    assert_eq!(next(&mut agent).await.name, "debugEcho");
}

/// An Agent that fails the first calls, or never answers them.
#[derive(Clone)]
struct BadAgent {
    calls: Arc<AtomicUsize>,
    never_answers: bool,
    fails: usize,
}

#[tonic::async_trait]
impl Registration for BadAgent {
    async fn register_discovery_handler(
        &self,
        _request: Request<RegisterDiscoveryHandlerRequest>,
    ) -> Result<Response<Empty>, Status> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.never_answers {
            std::future::pending::<()>().await;
        }
        if call < self.fails { Err(Status::internal("not today")) } else { Ok(Response::new(Empty {})) }
    }
}

fn serve(node: &Node, agent: BadAgent) -> tokio::task::JoinHandle<()> {
    let path = make_handlers_directory(node).join(AGENT_SOCKET);
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(agent));
        server.serve_with_incoming(incoming).await.unwrap();
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_answers_errors_is_asked_again_until_it_accepts() {
    let mut node = Node::prepare();
    let agent = BadAgent { calls: Arc::default(), never_answers: false, fails: 2 };
    let server = serve(&node, agent.clone());
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.run();
    node.wait_for_log("registered with the Agent");
    assert_eq!(agent.calls.load(Ordering::SeqCst), 3);
    assert_eq!(node.log().matches("not today").count(), 1, "the same error is told once");
    node.assert_undisturbed().await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_never_answers_disturbs_nobody() {
    let mut node = Node::prepare();
    let agent = BadAgent { calls: Arc::default(), never_answers: true, fails: 0 };
    let server = serve(&node, agent.clone());
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.run();
    assert!(wait_for(|| agent.calls.load(Ordering::SeqCst) >= 1));
    node.assert_undisturbed().await;
    node.wait_for_log("no answer within");
    server.abort();
    // The next Agent is found although the last call to the old one is open.
    std::fs::remove_file(node.path("akri").join(AGENT_SOCKET)).unwrap();
    let mut agent = RegistrationSocket::serve(&node.path("akri")).unwrap();
    assert_eq!(next(&mut agent).await.name, "debugEcho");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_another_process_serves_is_not_taken() {
    let mut first = Node::start();
    first.assert_undisturbed().await;
    let mut second = Node::prepare();
    std::os::unix::fs::symlink(first.path("akri"), second.path("akri")).unwrap();
    second.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    second.run();
    second.wait_for_log(&format!("served by another process (pid {}", first.pid()));
    first.assert_undisturbed().await;
    assert_eq!(second.terminate(), Some(0));
    first.assert_undisturbed().await;
}
