// Calls a node's sockets as Go programs do: each way to dial gives the server another name (:authority).
//
// Usage: clients KUBELET_SOCKET POD_RESOURCES_SOCKET HANDLER_SOCKET
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

func dialer(ctx context.Context, path string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

// Opens a connection in each of the ways that plugins and tools use.
func connections(path string) map[string]*grpc.ClientConn {
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	ways := map[string]func() (*grpc.ClientConn, error){
		"Dial": func() (*grpc.ClientConn, error) { return grpc.Dial(path, plain, grpc.WithContextDialer(dialer)) },
		"passthrough:": func() (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+path, plain, grpc.WithContextDialer(dialer))
		},
		"unix:":   func() (*grpc.ClientConn, error) { return grpc.NewClient("unix:"+path, plain) },
		"unix://": func() (*grpc.ClientConn, error) { return grpc.NewClient("unix://"+path, plain) },
		"own authority": func() (*grpc.ClientConn, error) {
			return grpc.NewClient("unix:"+path, plain, grpc.WithAuthority("a b/ä["))
		},
		"empty authority": func() (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///", plain, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialer(ctx, path) }))
		},
	}
	opened := map[string]*grpc.ClientConn{}
	for name, open := range ways {
		connection, err := open()
		if err != nil {
			fmt.Println(name, err)
			os.Exit(1)
		}
		opened[name] = connection
	}
	return opened
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	failed := false
	told := func(call, name string, err error) {
		fmt.Println(call, name, err)
		failed = failed || err != nil
	}
	for name, connection := range connections(os.Args[1]) {
		// More than once: later calls refer to the headers of the first.
		for range 3 {
			request := &deviceplugin.RegisterRequest{Version: "v1beta1", Endpoint: "none.sock", ResourceName: "example.com/go"}
			_, err := deviceplugin.NewRegistrationClient(connection).Register(ctx, request)
			told("Register", name, err)
		}
	}
	for name, connection := range connections(os.Args[2]) {
		_, err := podresources.NewPodResourcesListerClient(connection).List(ctx, &podresources.ListPodResourcesRequest{})
		told("List", name, err)
	}
	for name, connection := range connections(os.Args[3]) {
		// A message with one string, as the request is, and any message as answer: the types are not what is tried here.
		method := "/v0.DiscoveryHandler/Discover"
		stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		if err == nil {
			err = stream.SendMsg(wrapperspb.String("descriptions: [foo]"))
		}
		if err == nil {
			err = stream.CloseSend()
		}
		if err == nil {
			err = stream.RecvMsg(&emptypb.Empty{})
		}
		told("Discover", name, err)
	}
	if failed {
		os.Exit(1)
	}
}
