# Keys, certificates and kubeconfigs of the cluster, in .cluster/pki. Sourced.
# shellcheck shell=bash

pki=$CLUSTER/pki

# openssl's own configuration would add extensions of its choice.
openssl_req() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 3650 \
        -config <(printf '[req]\ndistinguished_name=dn\n[dn]\n') "$@" 2>/dev/null
}

pki_authority() {
    mkdir -p "$pki"
    chmod 700 "$pki"
    openssl_req -subj "/CN=$cluster_id" -keyout "$pki/ca.key" -out "$pki/ca.crt" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/service-account.key"
    openssl ec -in "$pki/service-account.key" -pubout -out "$pki/service-account.pub" 2>/dev/null
}

# Signs a certificate for client and server use: pki_certificate NAME SUBJECT [SAN]
pki_certificate() {
    openssl_req -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -subj "$2" \
        -keyout "$pki/$1.key" -out "$pki/$1.crt" \
        -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=clientAuth,serverAuth \
        ${3:+-addext "subjectAltName=$3"}
}

# Prints the kubeconfig of a certificate's owner: pki_kubeconfig NAME
pki_kubeconfig() {
    cat <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: $cluster_id
    cluster:
      server: https://$net.0.2:6443
      certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
  - name: $1
    user:
      client-certificate-data: $(base64 -w0 "$pki/$1.crt")
      client-key-data: $(base64 -w0 "$pki/$1.key")
contexts:
  - name: $cluster_id
    context: { cluster: $cluster_id, user: $1 }
current-context: $cluster_id
YAML
}
