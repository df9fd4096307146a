//! Tells which pod has which devices.

use crate::allocation::PodDevices;
use crate::devices::Devices;
use akri_krustlet_host::GrpcService;
use akri_proto::v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use akri_proto::v1::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, NumaNode,
    PodResources, TopologyInfo,
};
use std::sync::{Arc, Weak};
use tonic::{Request, Response, Status};

/// What is served on the pod resources socket.
pub(crate) fn service(devices: &Arc<Devices>) -> impl GrpcService {
    PodResourcesListerServer::new(Lister { devices: Arc::downgrade(devices) })
}

struct Lister {
    devices: Weak<Devices>,
}

impl Lister {
    fn devices(&self) -> Result<Arc<Devices>, Status> {
        self.devices.upgrade().ok_or_else(|| Status::unavailable("the node is ending"))
    }
}

fn topology(nodes: Vec<i64>) -> Option<TopologyInfo> {
    let nodes: Vec<_> = nodes.into_iter().map(|id| NumaNode { id }).collect();
    (!nodes.is_empty()).then_some(TopologyInfo { nodes })
}

fn resources_of(pod: PodDevices, devices: &Devices) -> PodResources {
    let containers = pod.containers.into_iter().map(|container| {
        // One entry for each device, as it has a place of its own in the machine.
        let of_resource = container
            .granted
            .into_iter()
            .flat_map(|(resource, granted)| granted.ids.into_iter().map(move |id| (resource.clone(), id)));
        let entries = of_resource.map(|(resource, id)| ContainerDevices {
            topology: topology(devices.numa_nodes(&resource, &id)),
            resource_name: resource,
            device_ids: vec![id],
        });
        ContainerResources { name: container.name, devices: entries.collect(), ..ContainerResources::default() }
    });
    PodResources { name: pod.name, namespace: pod.namespace, containers: containers.collect() }
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        let devices = self.devices()?;
        let pod_resources = devices.pods().into_iter().map(|pod| resources_of(pod, &devices)).collect();
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let devices = self.devices()?.allocatable().into_iter().flat_map(|(resource, devices)| {
            devices.into_iter().map(move |(id, device)| ContainerDevices {
                resource_name: resource.clone(),
                device_ids: vec![id],
                topology: topology(device.numa_nodes),
            })
        });
        Ok(Response::new(AllocatableResourcesResponse {
            devices: devices.collect(),
            ..AllocatableResourcesResponse::default()
        }))
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let devices = self.devices()?;
        let pod = devices.pods().into_iter().find(|pod| pod.name == pod_name && pod.namespace == pod_namespace);
        let pod = pod.ok_or_else(|| Status::not_found(format!("no pod {pod_namespace}/{pod_name} on this node")))?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(resources_of(pod, &devices)) }))
    }
}
