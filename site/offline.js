// A page opened from the file system may not start a worker, so its script runs in a hidden frame instead
if (location.protocol === 'file:') window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement('iframe'), script = document.createElement('script')
    frame.hidden = true
    document.body.append(frame)
    this.inside = frame.contentWindow
    this.inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', {data}))
    script.src = new URL(url, location.href)
    this.ready = new Promise(done => { script.onload = done })
    frame.contentDocument.body.append(script)
  }
  postMessage(data) { this.ready.then(() => this.inside.dispatchEvent(new MessageEvent('message', {data}))) }
  terminate() { this.inside.frameElement.remove() }
}
